# %% [markdown]
# # Reproduce four papers
#
# A figure of each of four papers on learning without backprop, small enough to run while you
# watch: what theory predicts as lines, what networks under the plugged rules do as points, in one
# picture. Use the cells as a start for the figure that you need. **One minute.**
#
# ```
# pip install 'bioprop[train]'
# ```

# %%
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bioprop
from bioprop import theory
from bioprop.theory import recurrent

# %config InlineBackend.figure_format = 'retina'
# Okabe and Ito's colours: told apart by all eyes.
COLOURS, MARKERS = ['#000000', '#D55E00', '#0072B2', '#009E73'], 'osD^'
plt.rcParams.update({
    'axes.prop_cycle': plt.cycler(color=COLOURS), 'figure.figsize': (7.2, 3.4),
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# All networks here learn by full-batch gradient descent, so one loop serves them all. It is a scan
# that gives what `seen` tells of the parameters before each step.


# %%
def descend(model, variables, loss, rate, steps, seen):
  """Follows the pseudogradients of loss(output) for so many steps; seen(params, output) of each."""
  frozen = {name: value for name, value in variables.items() if name != 'params'}
  output = lambda params: model.apply({'params': params, **frozen}, loss.x)

  def step(params, _):
    grads = jax.grad(lambda params: loss(output(params)))(params)
    return jax.tree.map(lambda p, g: p - rate * g, params, grads), seen(params, output(params))

  return jax.lax.scan(step, variables['params'], length=steps)[1]


follow = jax.jit(descend, static_argnames=('model', 'loss', 'rate', 'steps', 'seen'))


# %%
class Squares:
  """Half the sum of squared distances to the targets, of outputs less the first ones."""

  def __init__(self, x, y, start=0.0):
    self.x, self.y, self.start = x, y, start

  def __call__(self, outputs):
    return jnp.sum((outputs - self.start - self.y)**2) / 2


class Dense(nn.Module):
  """A layer in the scale in which width drops out."""
  features: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(1.0), (x.shape[-1], self.features))
    return x / math.sqrt(x.shape[-1]) @ kernel


# %% [markdown]
# ## Bordelon & Pehlevan 2023, figure 5
#
# *The influence of learning rule on representation dynamics in wide neural networks* ([arXiv
# 2210.02157](https://arxiv.org/abs/2210.02157)). In two layers of linear units on whitened data,
# everything that a wide network does follows from one or two ordinary differential equations. The
# paper shows that features move *less* towards the targets, the more the feedback knows of the
# initial weights: feedback that is unrelated to them has to make up for it.

# %%
GAMMA0, RATE, STEPS, WIDTH, P = 1.5, 0.02, 150, 4000, 8
y = np.resize([1.0, -1.0], P).astype(np.float32)
x = np.eye(P, dtype=np.float32) * math.sqrt(P)  # Whitened: x x' / P is the identity.


class TwoLayers(nn.Module):
  @nn.compact
  def __call__(self, x):
    hidden = Dense(WIDTH)(x)
    return Dense(1)(hidden)[:, 0] / (GAMMA0 * math.sqrt(WIDTH))


def along(params, outputs):
  """The output and the kernel of the hidden layer, both along the targets."""
  unit = y / np.linalg.norm(y)
  hidden = unit @ (x / math.sqrt(P) @ params['Dense_0']['kernel'])
  return unit @ outputs, jnp.sum(hidden**2) / WIDTH


# %%
CASES = {'bp': ('bp', 0.0)} | {f'fa, ρ = {rho:g}': ('fa', rho) for rho in (0.0, 0.5, 1.0)}
times = RATE * np.arange(STEPS)
fig, axes = plt.subplots(1, 2)
for (label, (name, rho)), marker in zip(CASES.items(), MARKERS):
  rule = 'bp' if name == 'bp' else bioprop.make('fa', rho=rho, scale=1.0)
  model = bioprop.plug(TwoLayers(), rule)
  variables = model.init(jax.random.key(0), x)
  loss = Squares(x, y, model.apply(variables, x))
  rate = RATE * GAMMA0**2 * WIDTH
  f, h = follow(model, variables, loss, rate, STEPS, along)
  predicted = theory.two_layer(name, GAMMA0, float(np.linalg.norm(y)), times, rho=rho)
  for ax, line, points in zip(axes, (predicted.f, predicted.h), (f - f[0], h)):
    line, = ax.plot(times, line, label=label)
    ax.plot(times[::10], points[::10], marker, color=line.get_color(), ms=4, mfc='none')
axes[0].set(title='Output along the targets', xlabel='time')
axes[1].set(title='Kernel of the hidden layer', xlabel='time')
axes[1].legend()
fig.suptitle('The less feedback knows, the later it learns, and the more features move')
plt.show()

# %% [markdown]
# The paper prints backprop's equation without a factor 2, which is in the line here: networks
# agree with it.
#
# ## Boopathy & Fiete 2022
#
# *How to train your wide neural network without backprop: an input-weight alignment perspective*
# ([arXiv 2106.08453](https://arxiv.org/abs/2106.08453)). The paper's Align rules send errors back
# through the *initial* weights. In wide networks they become backprop, whereas feedback alignment
# does not, as it becomes lazy: only its readout learns.

# %%
WIDTHS, STEPS, RATE = [32, 128, 512], 100, 0.05
random = np.random.default_rng(0)
x = random.standard_normal((16, 24)).astype(np.float32)
y = np.resize([1.0, -1.0], 16).astype(np.float32)


class Wide(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(Dense(self.width)(x)) * 2**0.5
    return Dense(1)(x)[:, 0]


# %%
def outputs(rule, width):
  """[steps, n]: the outputs while a network learns, less the first."""
  model = bioprop.plug(Wide(width), rule)
  variables = model.init(jax.random.key(0), x)
  loss = Squares(x, y, model.apply(variables, x))
  f = follow(model, variables, loss, RATE, STEPS, lambda params, outputs: outputs)
  return np.asarray(f - f[0])


RULES = {'bp': 'bp', 'fa': bioprop.make('fa', scale=1.0), 'align_prop': 'align_prop',
         'align_ada': 'align_ada'}
found = {name: [outputs(rule, width) for width in WIDTHS] for name, rule in RULES.items()}

# %% [markdown]
# The prediction is the lazy limit of this very model: one call reads the kernels of both rules
# from it, and `predict_steps` follows gradient descent with either.

# %%
limit = theory.infinite(Wide(512), x, rule=RULES['fa'])
lazy = {name: np.asarray(theory.predict_steps(kernel, y, RATE, STEPS - 1).train)
        for name, kernel in (('bp', limit.ntk), ('fa', limit.entk))}
distance = lambda f, g: np.linalg.norm(f - g) / np.linalg.norm(g)

fig, (left, right) = plt.subplots(1, 2)
for (name, courses), colour, marker in zip(found.items(), COLOURS, MARKERS):
  if name in lazy:
    left.plot(np.mean((lazy[name] - y)**2, 1), color=colour)
  left.plot(np.arange(0, STEPS, 10), np.mean((courses[-1][::10] - y)**2, 1), marker, ms=4,
            color=colour, mfc='none', label=name)
  if name != 'bp':
    right.loglog(WIDTHS, [distance(*pair) for pair in zip(courses, found['bp'])], marker, ms=5,
                 color=colour, linestyle=':', label=name)
right.axhline(distance(lazy['fa'], lazy['bp']), color=COLOURS[1], label='fa, infinite width')
left.set(title='Width 512 beside infinite width', xlabel='step', ylabel='mean squared error',
         ylim=(0, None))
right.set(title='Distance from backprop', xlabel='width', ylabel='relative, over all of training')
right.set_xticks(WIDTHS, WIDTHS)
right.minorticks_off()
left.legend()
right.legend(fontsize=9)
plt.show()

# %% [markdown]
# Left: lines are predictions of backprop and of feedback alignment at infinite width, which a
# network of width 512 is close to, and not yet at. Right: the Align rules come closer to backprop
# the wider the network is; feedback alignment stays about as far away as theory says.
#
# ## Robertson & Koyejo 2023
#
# *Layer-wise feedback alignment is conserved in deep neural networks* ([arXiv
# 2306.01870](https://arxiv.org/abs/2306.01870)). Under feedback alignment a ReLU network keeps
# $\tfrac12 |W_l|^2 - \langle W_{l+1}, B_{l+1} \rangle$ constant, whatever the data and the loss.
# So weights align with their feedback exactly as much as those of the layer below grow, and a
# start from which they are aligned keeps them so.

# %%
STEPS, RATE = 600, 0.02


class Chain(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (40, 40):
      x = nn.relu(nn.Dense(width, use_bias=False)(x))
    return nn.Dense(1, use_bias=False)(x)[:, 0]


kernels = lambda tree: [tree[f'Dense_{at}']['kernel'] for at in range(3)]
model = bioprop.plug(Chain(), bioprop.make('fa', scale=1.0))
x = random.standard_normal((30, 10)).astype(np.float32)
y = np.tanh(x @ random.standard_normal(10)).astype(np.float32)
drawn = model.init(jax.random.key(0), x)
starts = {'unrelated feedback': drawn, 'aligned_init': theory.aligned_init(model, drawn, x)}


# %%
def course(variables):
  """<W, B> of layers 2 and 3, and half the squared norm of the layer below each, [steps, 2]."""
  feedback = [variables['feedback'][f'Dense_{at}']['kernel'] for at in (1, 2)]

  def seen(params, _):
    weights = kernels(params)
    return (jnp.stack([jnp.vdot(w, b) for w, b in zip(weights[1:], feedback)]),
            jnp.stack([jnp.sum(w**2) / 2 for w in weights[:-1]]))

  return follow(model, variables, Squares(x, y), RATE / len(x), STEPS, seen)


# %%
fig, axes = plt.subplots(1, 2)
for ax, (name, start) in zip(axes, starts.items()):
  inner, half = map(np.asarray, course(start))
  for layer, colour, marker in zip((0, 1), COLOURS[1:], MARKERS):
    conserved = half[0, layer] - inner[0, layer]
    ax.plot(half[:, layer] - conserved, color=colour, label=f'layer {layer + 2}: conserved')
    ax.plot(np.arange(0, STEPS, 50), inner[::50, layer], marker, color=colour, ms=4, mfc='none',
            label=f'layer {layer + 2}: measured')
    if name == 'aligned_init':
      ax.axhline(-conserved, color=colour, linestyle=':')
      ax.text(STEPS, -conserved, 'never below', ha='right', va='bottom')
  ax.axhline(0, color='0.6', lw=0.8)
  ax.set(title=name, xlabel='step')
axes[0].set_ylabel('<W, B>')
axes[0].legend(fontsize=9)
plt.show()

# %% [markdown]
# Lines are what the conserved quantity says of the first step's value and the norm of the layer
# below. On the right the dotted bounds are above zero: from this start weights and feedback can
# never come to disagree. That is what `theory.flows.alignment_bound` computes.
#
# ## Williams, Payeur & Lajoie 2026
#
# *Dynamics and representation structure of local approximations to gradient-based learning in
# linear recurrent neural networks* ([arXiv 2606.00243](https://arxiv.org/abs/2606.00243)). One
# mode of a linear network, $h_t = w h_{t-1} + b x_t$, $y = a h_T$, learns from a teacher. Every
# solution lies on the curve $ab = a^* b^*$. The paper shows that local rules take other ways to
# it, and to other points of it: `rflo` goes where its fixed feedback leads.

# %%
HORIZON, RATE, STEPS = 40, 0.02, 800
teacher, LEAK, FEEDBACK = recurrent.Mode(1.0, 1.0, 0.6), 0.5, 0.5


class Cell(nn.RNNCellBase):
  @nn.compact
  def __call__(self, state, x):
    state = (nn.Dense(1, use_bias=False, name='recurrent')(state) +
             nn.Dense(1, use_bias=False, name='input')(x))
    return state, state

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], 1))

  @property
  def num_feature_axes(self):
    return 1


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x):
    states = nn.RNN(Cell(name='cell'))(x)
    return nn.Dense(1, use_bias=False, name='readout')(states[:, -1])


# %% [markdown]
# An impulse at one time each: a sum over these is an average over white noise, exactly.

# %%
impulses = jnp.eye(HORIZON)[..., None]
one = lambda value: {'kernel': jnp.reshape(value, (1, 1))}
parameters = lambda a, b, w: {'readout': one(a), 'cell': {'input': one(b), 'recurrent': one(w)}}
desired = Linear().apply({'params': parameters(*map(jnp.float32, teacher))}, impulses)
modes = lambda params, _: tuple(
    one['kernel'][0, 0] for one in (params['readout'], params['cell']['input']))
starts = np.array([[0.3, -0.2, 0], [1.5, -0.8, 0], [-0.6, -0.6, 0], [-0.8, 0.5, 0]], np.float32)


def network(rule):
  """a and b of networks from each start, [starts, steps]."""
  model = bioprop.plug(Linear(), rule)
  rest = {name: value for name, value in model.init(jax.random.key(0), impulses).items()
          if name != 'params'}
  if rest:  # Feedback of our choice in place of what was drawn.
    rest = {'feedback': {**rest['feedback'], 'readout': one(jnp.float32(FEEDBACK))}}
  run = lambda start: descend(model, {'params': parameters(*start), **rest},
                              Squares(impulses, desired), RATE, STEPS, modes)
  return jax.jit(jax.vmap(run))(starts)


# %%
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7.2, 4.4))
s = np.linspace(0.4, 2.2, 50)
for ax, title, rule, name, told in (
    (axes[0], 'backprop through time', 'bp', 'bptt', {}),
    (axes[1], f'rflo, feedback {FEEDBACK:g}', bioprop.make('rflo', leak=LEAK), 'rflo',
     {'leak': LEAK, 'feedback': FEEDBACK})):
  a, b = network(rule)
  path = recurrent.trajectory(name, recurrent.Mode(*starts.T.astype(float)), teacher,
                              RATE * np.arange(STEPS), **told).modes
  for sign in (1, -1):
    ax.plot(sign * s, sign * teacher.a * teacher.b / s, color='0.7', lw=4, zorder=0)
  for at, colour in enumerate(COLOURS):
    ax.plot(path.a[:, at], path.b[:, at], color=colour)
    ax.plot(a[at, ::15], b[at, ::15], MARKERS[at], color=colour, ms=4, mfc='none')
    ax.plot(*starts[at, :2], MARKERS[at], color=colour, ms=7)
  ax.set(title=title, xlabel='readout a', xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect='equal')
axes[0].set_ylabel('input weight b')
fig.suptitle('Lines are equations of modes, points are recurrent networks')
plt.show()

# %% [markdown]
# Filled points are starts, grey curves all solutions. Under backprop through time a network ends
# on either branch; under `rflo` these four end where readout and feedback have the same sign,
# however long the way. Change `FEEDBACK` to -0.5 and see where they go. Start at (-0.5, -1.5):
# there w grows to one on its way, and learning diverges, in theory as in the network.
#
# **Next:** [theory beside networks, claim by claim](../results/theory.html), with all figures of
# the papers and the commands that make them · [the Align rules over widths](../results/align.html)
# · [recurrent tasks](../results/recurrent.html) · [how to cite](../cite.html)
