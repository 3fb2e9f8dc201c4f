# %% [markdown]
# # Write your own rule
#
# A rule answers two questions at each product of a weight with data: how does the weight change,
# and what is sent to whatever made the input? You will write one that bioprop does not have,
# *feedback alignment through sparse feedback*, check it against formulas, train it, and measure
# how sparse it may be. **One minute.**
#
# ```
# pip install 'bioprop[train]'
# ```

# %%
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn import datasets, model_selection

import bioprop
from bioprop.rules import Credit

# %config InlineBackend.figure_format = 'retina'
# Okabe and Ito's colours: told apart by all eyes.
COLOURS = ['#D55E00', '#0072B2', '#009E73', '#CC79A7', '#000000']
plt.rcParams.update({
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.figsize': (7.2, 3.4), 'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# ## The rule
#
# Feedback alignment sends errors back through fixed random weights $B$ in place of $W^\top$, a
# synapse back for each synapse forward. Brains do not have that many, and neither has hardware:
# Crafton et al. (2019) found that direct feedback alignment bears to lose almost all of them. Here
# is the question for `fa`: each weight of $B$ is there with the probability `density`, and drawn
# larger by $1 / \sqrt{\text{density}}$, so that what arrives is as large as before.
#
# A rule is a frozen dataclass, whose fields are its options. Three methods:


# %%
@dataclasses.dataclass(frozen=True)
class SparseFeedback(bioprop.Rule):
  """Feedback alignment through fixed random feedback, most of which is not there.

  Attributes:
    density: the share of feedback weights that there are, in (0, 1].
    scale: 1 sends back errors as large as backprop's at the start.
  """
  density: float = 0.1
  scale: float = 1.0

  def init_feedback(self, key, site):
    draw, keep = jax.random.split(key)
    feedback = site.draw(draw, self.scale / self.density**0.5)  # None: x takes no errors.
    return jax.tree.map(lambda b: jnp.where(
        jax.random.bernoulli(keep, self.density, b.shape), b, 0), feedback)

  def backward(self, op, params, x, feedback, g, e):
    sent = None if feedback is None else op.send(feedback, params, x, g)
    return Credit(op.update(params, x, g), sent)

  def sent_through(self, weights, feedback):  # For measurements of W and B alone.
    return feedback


# %% [markdown]
# `g` is the cotangent that arrived at the layer's output. `op.update` is $x^\top g$, whatever the
# layer is, and `op.send` is the layer's own transpose with other weights in it. So the rule never
# says what a layer is, and works for convolutions, attention, and loops over time. Does it do what
# we think?
#
# ## Check one: by hand
#
# Of two layers everything is written in a line. What `jax.grad` of the plugged model gives, beside
# NumPy:


# %%
class Two(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(50)(x))
    return nn.Dense(3)(x)


random = np.random.default_rng(0)
x, target = (random.standard_normal(shape).astype(np.float32) for shape in ((8, 5), (8, 3)))
model = bioprop.plug(Two(), SparseFeedback(density=0.2))
variables = model.init(jax.random.key(0), x)
loss = lambda params, feedback: jnp.sum(
    (model.apply({'params': params, 'feedback': feedback}, x) - target)**2) / 2
found = jax.grad(loss)(variables['params'], variables['feedback'])

first, second = (variables['params'][name]['kernel'] for name in ('Dense_0', 'Dense_1'))
B = np.asarray(variables['feedback']['Dense_1']['kernel'])  # [50, 3], as the weights are
hidden = np.tanh(x @ first)
by_hand = x.T @ ((hidden @ second - target) @ B.T * (1 - hidden**2))
print(f'share of B that is there: {np.mean(B != 0):.2f}')
print(f'largest difference to NumPy: {np.abs(found["Dense_0"]["kernel"] - by_hand).max():.0e}')

# %% [markdown]
# ## Check two: with $B = W$ it is backprop
#
# This is the one test that every rule of feedback alignment passes or is wrong; bioprop's own
# tests put it to each rule in each kind of layer. Put the weights themselves where the feedback
# was:

# %%
own = {layer: {'kernel': variables['params'][layer]['kernel']} for layer in variables['feedback']}
with_own = jax.grad(loss)(variables['params'], own)
exact = jax.grad(lambda params: jnp.sum((Two().apply({'params': params}, x) - target)**2) / 2)(
    variables['params'])
differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), with_own, exact)
print('largest difference to backprop:', max(jax.tree.leaves(differences)))

# %%
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.8))
axes[0].imshow(B.T, cmap='PuOr_r', vmin=-1, vmax=1, aspect='auto', interpolation='nearest')
axes[0].set(title='B, density 0.2', xlabel='hidden unit', ylabel='output', yticks=range(3))
pairs = (('by hand', by_hand, found), ('by backprop', exact['Dense_0']['kernel'], with_own))
for ax, (what, expected, got) in zip(axes[1:], pairs):
  ax.axline((0, 0), slope=1, color='0.6', lw=1, zorder=0)
  ax.plot(np.ravel(expected), got['Dense_0']['kernel'].ravel(), 'o', ms=3, mfc='none',
          color='#0072B2')
  ax.set(xlabel=what, ylabel='by jax.grad of the rule')
axes[1].set_title('Check one')
axes[2].set_title('Check two, B = W')
plt.show()

# %% [markdown]
# ## Train it
#
# On digits, two narrow hidden layers, four densities. The loop is the one of [the first
# tutorial](1_seven_rules.html).

# %%
images, labels = datasets.load_digits(return_X_y=True)
x, x_test, y, y_test = map(jnp.asarray, model_selection.train_test_split(
    images.astype(np.float32) / 16, labels.astype(np.int32), test_size=360, stratify=labels,
    random_state=0))


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.tanh(nn.Dense(32)(x))
    return nn.Dense(10)(x)


EPOCHS, BATCH, SEEDS = 20, 64, 3
orders = np.stack([random.permutation(len(x))[:len(x) // BATCH * BATCH].reshape(-1, BATCH)
                   for _ in range(EPOCHS)])
optimiser = optax.sgd(0.03, momentum=0.9)


# %%
def train(model, key):
  """The model's variables, and its error on the test images in %."""
  variables = model.init(key, x[:1])
  params, frozen = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  loss = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
      model.apply({'params': params, **frozen}, x[batch]), y[batch]).mean()

  def step(carry, batch):
    params, state = carry
    updates, state = optimiser.update(jax.grad(loss)(params, batch), state)
    return (optax.apply_updates(params, updates), state), None

  batches = orders.reshape(-1, BATCH)
  (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), batches)
  variables = {'params': params, **frozen}
  return variables, 100 * jnp.mean(model.apply(variables, x_test).argmax(-1) != y_test)


# %%
# All seeds at once: the loop is an ordinary function, and vmap runs it for several keys.
several = jax.jit(jax.vmap(train, in_axes=(None, 0)), static_argnums=0)
keys = jax.random.split(jax.random.key(0), SEEDS)
DENSITIES = [1.0, 0.1, 0.03, 0.01]
sparse = {density: bioprop.plug(Net(), SparseFeedback(density)) for density in DENSITIES}
runs = {density: several(model, keys) for density, model in sparse.items()}
errors = {name: np.asarray(several(bioprop.plug(Net(), name), keys)[1])
          for name in ('bp', 'last_layer')}

# %% [markdown]
# ## Measure it
#
# A probe knows nothing of the rule either. `sent_through` tells it the matrices, for the angle
# between weights and feedback.

# %%
probes = {density: bioprop.measure.Probe(model, None, (x[:200], y[:200]), types=['angles'])
          for density, model in sparse.items() if density in (1.0, 0.1, 0.03)}
of_seed = lambda seed, tree: jax.tree.map(lambda leaf: leaf[seed], tree)
aligned = {density: [probe.measure(of_seed(seed, runs[density][0])) for seed in range(SEEDS)]
           for density, probe in probes.items()}

# %%
fig, (left, right) = plt.subplots(1, 2)
for density in DENSITIES:
  left.plot(SEEDS * [density], runs[density][1], 'o', color='#0072B2', ms=4, mfc='none')
left.plot(DENSITIES, [runs[density][1].mean() for density in DENSITIES], color='#0072B2',
          label='sparse feedback')
for (name, error), dashes in zip(errors.items(), ('-', '--')):
  left.axhline(error.mean(), color='#000000', linestyle=dashes, lw=1, label=name)
left.set(xscale='log', xlabel='density of the feedback', ylabel='test error in %', ylim=(0, 25),
         title='How sparse may it be?')
left.set_xticks(DENSITIES, DENSITIES)
left.minorticks_off()
left.legend(loc='upper right', fontsize=9)
layers = ['Dense_0', 'Dense_1', 'Dense_2']
for off, (density, found) in zip((-0.25, 0, 0.25), aligned.items()):
  cosines = np.array([[one[f'cosine/{layer}/kernel'] for layer in layers] for one in found])
  degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1)))  # 1 to rounding, in the readout.
  right.bar(np.arange(3) + off, degrees.mean(0), 0.22, label=f'density {density:g}',
            color={1.0: '#0072B2', 0.1: '#56B4E9', 0.03: '#E69F00'}[density], edgecolor='k', lw=0.5)
right.axhline(90, color='0.6', lw=0.8)
right.set_xticks(range(3), layers)
right.set(ylabel='angle to the gradient in °', title='After training', ylim=(0, 130))
right.legend(loc='upper right', fontsize=9)
plt.show()

# %% [markdown]
# Points are single seeds. A tenth of the feedback does nearly what all of it does; with a
# hundredth the network is close to one whose readout alone learns. The readout, Dense_2, is always
# at 0°: it gets the true error.
#
# ## Where it goes from here
#
# - `bioprop.plug(Net(), {'Dense_0': 'bp', '*': SparseFeedback(0.03)})`: your rule among others, by
#   layer. Plug it into a CNN or a GRU: nothing has to be added.
# - What would change if each unit heard *one* of the units above it? Draw that in `init_feedback`.
# - Bad options should be refused where they are given, in `__post_init__`, as those of the library
#   are: `bioprop.make('fa', rho=2)` tells what is wrong and what to type.
# - A rule that broadcasts the error sets `reads_error = True`, and gets it as `e`; one whose
#   feedback learns sets `learns = True`, and returns its pseudogradient as the third of `Credit`.
#
# **Next:** [Reproduce four papers](6_four_papers.html) · [Write a rule](../write-a-rule.html) ·
# [all rules](../rules/index.html)
