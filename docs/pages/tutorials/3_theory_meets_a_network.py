# %% [markdown]
# # Theory meets a network
#
# Wide networks are predictable. You will read the infinitely wide limit of a model of your own
# from its code, and watch networks of growing width come closer to it; then leave the lazy regime,
# where features move, and lay mean-field theory on top of a network's training. **One minute.**
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
import optax
from sklearn import datasets

import bioprop
from bioprop import measure, theory

# %config InlineBackend.figure_format = 'retina'
BLACK, ORANGE, BLUE = '#000000', '#D55E00', '#0072B2'  # Okabe and Ito's: told apart by all eyes.
plt.rcParams.update({
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.figsize': (7.2, 3.4), 'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# ## Your own model at infinite width
#
# A residual block with LayerNorm and GELU, in the scale in which width drops out: weights of
# variance one, and $1/\sqrt n$ before each product. No library of layers is needed for that, nor
# any description of the network: theory reads what JAX traces.


# %%
class Dense(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(1.0), (x.shape[-1], self.features))
    return x / math.sqrt(x.shape[-1]) @ kernel


class Net(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    h = nn.gelu(Dense(self.width)(x))
    h = h + Dense(self.width)(nn.gelu(Dense(self.width)(nn.LayerNorm()(h))))
    return Dense(1)(h)


# %%
x = jnp.asarray(datasets.load_digits().data[:12] / 8, jnp.float32)
rule = bioprop.make('fa', rho=0.5, scale=1.0)  # Feedback that knows half of the initial weights.
limit = theory.infinite(Net(1024), x, rule=rule)
print('backprop:', limit.ntk.shape, ' feedback alignment:', limit.entk.shape)
print('layers:', ', '.join(limit.phi))

# %% [markdown]
# `ntk` is backprop's kernel at infinite width, `entk` that of the rule. Now networks: ten draws of
# each width. One object of derivatives gives both kernels, as the weights are the same.


# %%
def kernels(width, seeds=10):
  """[seeds, 2, n, n]: backprop's kernels and the rule's."""
  model = bioprop.plug(Net(width), rule)
  init, jacobians, found = jax.jit(model.init), measure.jacobians(model, x), []
  for seed in range(seeds):
    variables = init(jax.random.key(seed), x)
    true, pseudo = jacobians.true(variables), jacobians.pseudo(variables)
    found.append([measure.ntk(true, x, trace=True), measure.entk(true, pseudo, x, trace=True)])
  return np.array(found)


WIDTHS = np.array([64, 256, 1024])
measured = {width: kernels(width) for width in WIDTHS}

# %%
fig, (left, right) = plt.subplots(1, 2)
for at, (name, exact, colour, marker) in enumerate([
    ('bp', limit.ntk, BLACK, 'o'), ('fa, ρ = ½', limit.entk, ORANGE, 's')]):
  left.plot(exact.ravel(), measured[1024][0, at].ravel(), marker, color=colour, ms=3, label=name)
  off = np.array([np.linalg.norm(measured[width][:, at] - exact, axis=(1, 2)).mean()
                  for width in WIDTHS]) / np.linalg.norm(exact)
  slope = np.polyfit(np.log(WIDTHS), np.log(off), 1)[0]
  right.loglog(WIDTHS, off, marker, color=colour, label=f'{name}: slope {slope:.2f}')
  right.loglog(WIDTHS, off[-1] * np.sqrt(WIDTHS[-1] / WIDTHS), color=colour, lw=1,
               linestyle='-' if at == 0 else '--')
left.axline((1, 1), slope=1, color='0.6', lw=1, zorder=0)
left.set(xlabel='entry of the kernel, theory', ylabel='one network of width 1024',
         title='Entry by entry')
right.set(xlabel='width', ylabel='relative error, mean of 10', title='Error falls as 1/√width')
right.set_xticks(WIDTHS, WIDTHS)
right.set_yticks([0.05, 0.1, 0.2, 0.5], [0.05, 0.1, 0.2, 0.5])
right.minorticks_off()
left.legend()
right.legend()
plt.show()

# %% [markdown]
# Lines on the right are not fitted: they end at the last point, and fall as 1/√width, with slope
# -0.5. Narrow networks are further off than that. There are no free parameters on the left either.
#
# Such a kernel does not move: in this limit features stay as they were drawn, and the network is
# *lazy*. `theory.predict_steps(limit.entk, y, ...)` says how it learns.
#
# ## Where features move
#
# Divide the output by $\gamma_0\sqrt N$, and multiply the learning rate by $\gamma_0^2 N$: then
# features move by an amount that depends on $\gamma_0$ and not on the width $N$ (Bordelon &
# Pehlevan 2023). What infinitely wide networks do in this scale is the solution of equations of
# *dynamical mean-field theory*, DMFT, and differs from rule to rule.

# %%
GAMMA0, RATE, STEPS, WIDTH = 2.0, 0.05, 61, 2000
random = np.random.default_rng(0)
inputs = random.standard_normal((4, 20)).astype(np.float32)
targets = np.array([1, -1, 1, -1], np.float32)
solved = {rule: theory.solve_dmft(inputs, targets, depth=2, gamma0=GAMMA0, learning_rate=RATE,
                                  steps=STEPS, rule=rule, samples=3000, replicas=4)
          for rule in ('bp', 'fa')}
for name, solution in solved.items():
  print(f'{name}: relative errors ', {key: f'{error:.3f}' for key, error in solution.error.items()})

# %% [markdown]
# That was no network: copies of a single neuron march through time, each in the mean field of all.
# The solution tells its own errors. And a network, of Flax, under the plugged rule; its kernel is
# measured at each step, inside of the program that trains it:


# %%
class Rich(nn.Module):
  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.tanh(Dense(WIDTH)(x))
    return Dense(1)(x)[:, 0] / (GAMMA0 * math.sqrt(WIDTH))


# %%
def trained(rule):
  """The outputs of a network, less the first, and its kernels [T, n, n], before each step."""
  model, factor = bioprop.plug(Rich(), rule), GAMMA0**2 * WIDTH
  variables = model.init(jax.random.key(0), inputs)
  params, frozen = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  jacobians, optimiser = measure.jacobians(model, inputs), optax.sgd(RATE * factor)
  jacobians.true(variables)  # Once outside of jit, where they are checked.
  output = lambda params: model.apply({'params': params, **frozen}, inputs)
  start = output(params)
  loss = lambda params: jnp.sum((output(params) - start - targets)**2) / 2

  def step(carry, _):
    params, state = carry
    now = {'params': params, **frozen}
    kernel = measure.entk(jacobians.true(now), jacobians.pseudo(now), inputs, trace=True)
    updates, state = optimiser.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), (output(params) - start, factor * kernel)

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[1])
  return jax.device_get(run((params, optimiser.init(params))))


networks = {'bp': trained('bp'), 'fa': trained(bioprop.make('fa', scale=1.0))}

# %%
fig, (left, right) = plt.subplots(1, 2)
alignment = jax.vmap(lambda kernel: measure.target_alignment(kernel, jnp.asarray(targets)))
loss = lambda f: np.mean((f - targets)**2, 1)
for name, colour, marker in (('bp', BLACK, 'o'), ('fa', BLUE, 's')):
  solution, (f, kernel) = solved[name], networks[name]
  shown = slice(None, None, 5)
  for ax, lines, points in ((left, loss(solution.f), loss(f)), (
      right, alignment(jnp.asarray(solution.entk)), alignment(jnp.asarray(kernel)))):
    ax.plot(solution.times, lines, color=colour, label=f'{name}: theory')
    ax.plot(solution.times[shown], points[shown], marker, color=colour, ms=4, mfc='none',
            label=f'{name}: network')
left.set(xlabel='time', ylabel='mean squared error', title='Outputs', ylim=(0, None))
right.set(xlabel='time', ylabel='alignment with the targets', title='Kernels', ylim=(0, 1))
left.legend()
fig.suptitle('Lines are theory, points a network of width 2000: nothing is fitted')
plt.show()

# %% [markdown]
# Feedback alignment starts slowly, because the errors that arrive at its hidden layers mean
# nothing yet: its kernel begins with the readout's part alone. Weights have to align with the
# feedback first, and then its loss falls as fast. Theory has this wait.
#
# ## The kernels themselves

# %%
fig, axes = plt.subplots(2, 4, figsize=(7.2, 4), sharex=True, sharey=True)
for row, name in zip(axes, ('bp', 'fa')):
  ends = [('theory', solved[name].entk), ('network', networks[name][1])]
  order = np.argsort(-targets, kind='stable')  # The samples with target 1 first.
  limits = np.abs(solved[name].entk[-1]).max()
  for ax, (label, at, (who, kernel)) in zip(
      row, [(f'step {at % STEPS}', at, one) for at in (0, -1) for one in ends]):
    shown = ax.imshow(kernel[at][order][:, order], cmap='PuOr_r', vmin=-limits, vmax=limits)
    ax.set(title=f'{label}, {who}', xticks=[], yticks=[])
    ax.title.set_size(10)
  row[0].set_ylabel(name)
  fig.colorbar(shown, ax=row, shrink=0.8)
for name in solved:
  exact, kernel = solved[name].entk[-1], networks[name][1][-1]
  print(f'{name}: last kernels differ by '
        f'{100 * np.linalg.norm(kernel - exact) / np.linalg.norm(exact):.1f} %')

# %% [markdown]
# Samples are in the order of their targets, two of each. What training makes of the kernel, two
# blocks with opposite signs beside them, is a prediction.
#
# ## What to change
#
# - Replace `nn.gelu` by a function of your own, or add a `nn.Conv`: `infinite` reads it. Max
#   pooling it refuses, and says why.
# - `WIDTH = 100`: how far is a narrow network from its limit? Is it the loss or the kernel that is
#   off?
# - `GAMMA0 = 0.2`: a lazy network. Whose kernel still moves?
# - `rho=0.5` in `solve_dmft` and in `bioprop.make('fa', rho=0.5, scale=1.0)`: how much of the wait
#   is left?
#
# **Next:** [A recurrent network without backprop through time](4_recurrent.html) ·
# [Theory](../theory.html) · [theory beside networks, claim by claim](../results/theory.html)
