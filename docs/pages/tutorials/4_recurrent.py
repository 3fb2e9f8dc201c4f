# %% [markdown]
# # A recurrent network without backprop through time
#
# Backprop through time needs the whole past. You will train a recurrent network by rules that do
# not send errors back through its recurrent weights, see which of them learn a task of working
# memory, and then let the same model learn from a stream, step by step, in memory that does not
# grow: with the very same gradients. **One minute.**
#
# ```
# pip install 'bioprop[train]'
# ```

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bioprop
from bioprop.data.tasks import TASKS

# %config InlineBackend.figure_format = 'retina'
# Okabe and Ito's colours: told apart by all eyes. Dashes: told apart in grey print.
COLOURS = ['#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7']
DASHES = ['-', '--', '-.', ':', '-']
plt.rcParams.update({
    'axes.prop_cycle': plt.cycler(color=COLOURS) + plt.cycler(linestyle=DASHES),
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.figsize': (7.2, 3.4), 'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# ## The task
#
# Delayed match to sample: one of four stimuli, a delay of 5 to 15 steps, a second stimulus. Was it
# the same? The answer is asked for in five steps; all others are labelled -1 and do not count.

# %%
task = TASKS['delayed_match'](seed=0)
x, y, x_test, y_test = (jnp.asarray(part) for part in (*task.train, *task.test))
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7.2, 2.2))
match = np.asarray(y.max(1) == 1)
for ax, trial in zip(axes, (match.argmax(), match.argmin())):
  ax.imshow(x[trial].T, cmap='Greys', vmin=0, vmax=1, aspect='auto', interpolation='nearest')
  asked = np.flatnonzero(y[trial] >= 0)
  ax.axvspan(asked[0] - 0.5, asked[-1] + 0.5, color='#56B4E9', alpha=0.5, lw=0)
  ax.set(title='match' if match[trial] else 'no match', xlabel='step', yticks=range(4))
axes[0].set_ylabel('channel')
plt.show()

# %% [markdown]
# ## The model
#
# A layer of leaky units, as one would write it for Flax. The rules find by themselves which
# weights are recurrent, and what a unit carries from step to step without them.


# %%
class Leaky(nn.RNNCellBase):
  features: int

  @nn.compact
  def __call__(self, state, x):
    driven = nn.Dense(self.features, name='input')(x)
    driven = driven + nn.Dense(self.features, use_bias=False, name='recurrent')(state)
    state = 0.8 * state + 0.2 * nn.tanh(driven)
    return state, state

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self):
    return 1


class Net(nn.Module):
  outputs: int

  @nn.compact
  def __call__(self, x):  # [n, T, channels] to [n, T, outputs]
    return nn.Dense(self.outputs)(nn.RNN(Leaky(64))(x))


# %%
print(bioprop.describe(Net(2), 'rflo', x[:1]))

# %% [markdown]
# ## Whole sequences
#
# | rule | how an error reaches the past |
# |---|---|
# | `bp` | through all weights: backprop through time |
# | `tbptt` | through all weights, but only so many steps back; here 1 |
# | `rflo` | in time through each unit's leak alone; in space random feedback (Murray 2019) |
# | `eprop` | as `rflo`, and through each unit's weight to itself (Bellec et al. 2020) |
# | `last_layer` | not at all: the recurrent layer stays random |

# %%
EPOCHS, BATCH = 12, 50
random = np.random.default_rng(0)
orders = np.stack([random.permutation(len(x)).reshape(-1, BATCH) for _ in range(EPOCHS)])
optimiser = optax.adam(0.003)


def loss_of(outputs, labels):
  losses = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(labels, 0))
  return jnp.sum(jnp.where(labels >= 0, losses, 0)) / jnp.sum(labels >= 0)


# %%
def train(model, variables):
  """The test accuracy before each epoch."""
  params, frozen = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  output = lambda params, x: model.apply({'params': params, **frozen}, x)

  def step(carry, batch):
    params, state = carry
    grads = jax.grad(lambda params: loss_of(output(params, x[batch]), y[batch]))(params)
    updates, state = optimiser.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  def epoch(carry, batches):
    right = (output(carry[0], x_test).argmax(-1) == y_test) & (y_test >= 0)
    return jax.lax.scan(step, carry, batches)[0], right.sum() / (y_test >= 0).sum()

  return jax.lax.scan(epoch, (params, optimiser.init(params)), orders)[1]


# %%
RULES = {'bp': 'bp', 'tbptt, 1 step': bioprop.make('tbptt', steps=1), 'rflo': 'rflo',
         'eprop': 'eprop', 'last_layer': 'last_layer'}
for name, rule in RULES.items():
  model = bioprop.plug(Net(2), rule)
  accuracy = jax.jit(train, static_argnums=0)(model, model.init(jax.random.key(0), x[:1]))
  plt.plot(100 * np.asarray(accuracy), label=f'{name}  {100 * accuracy[-1]:.1f}')
plt.axhline(50, color='0.6', lw=0.8, linestyle='-')
plt.xlabel('epoch')
plt.ylabel('test accuracy in %')
plt.title('Working memory without backprop through time', loc='left')
plt.legend(title='rule, last accuracy', loc='center left', bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The grey line is chance. Rules that send nothing back through recurrent weights learn the task,
# as here the leak keeps what has to be kept. Where a task needs more memory than a unit has by
# itself, they do not: [a copy task](../results/recurrent.html) of ten steps breaks all of them.
#
# ## A stream
#
# What stays within a unit can be computed *forward*: an eligibility trace for each weight takes
# the place of the past. `bioprop.online` makes the step of such an algorithm out of the model of
# whole sequences, and tries it on three steps before it starts.

# %%
stream = bioprop.online(Net(2), 'rflo')
batch, answers = x[:20], y[:20]
variables = stream.model.init(jax.random.key(0), batch[:, :1])
rest = {k: v for k, v in variables.items() if k != 'params'}
error = lambda out, answer: jnp.sum(jnp.where(
    answer >= 0, optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(answer, 0)), 0))


@jax.jit
def online(variables, state, batch, answers):
  def step(state, now):
    x, answer = now
    found = stream.step(variables, state, x, lambda out: error(out, answer))
    return found.state, found.grads
  _, grads = jax.lax.scan(step, state, (batch.swapaxes(0, 1), answers.T))
  return jax.tree.map(lambda g: g.sum(0), grads)


forward = online(variables, stream.init(variables, batch[:, 0]), batch, answers)
backward = jax.jit(jax.grad(lambda params: error(
    stream.model.apply({'params': params, **rest}, batch), answers)))(variables['params'])

# %% [markdown]
# `stream.model` is the plugged model itself, so the same parameters and the same feedback give
# both: `forward`, the sum of 30 steps' gradients, and `backward`, the rule's gradient on whole
# sequences. And how much memory does each take? XLA tells, without running anything.


# %%
def megabytes(function, *arguments):
  memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
  return memory.temp_size_in_bytes / 1e6


def whole(params, batch, answers):
  return jax.grad(lambda params: error(
      stream.model.apply({'params': params, **rest}, batch), answers))(params)


def one(variables, state, x, answer):
  return stream.step(variables, state, x, lambda out: error(out, answer)).grads


LENGTHS = [100, 1000, 10000]
sequences = [megabytes(whole, variables['params'], jax.ShapeDtypeStruct((20, T, 4), x.dtype),
                       jax.ShapeDtypeStruct((20, T), y.dtype)) for T in LENGTHS]
state = stream.init(variables, batch[:, 0])
step_alone = megabytes(one, variables, state, batch[:, 0], answers[:, 0])
traces = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6

# %%
fig, (left, right) = plt.subplots(1, 2)
for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(backward)):
  left.plot(b.ravel(), a.ravel(), 'o', ms=3, color='#0072B2', mfc='none')
off = max(jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in zip(
    jax.tree.leaves(forward), jax.tree.leaves(backward)))
left.axline((0, 0), slope=1, color='0.6', lw=1, zorder=0, linestyle='-')
left.set(title=f'Same gradients, to {off:.0e}', xlabel='whole sequences: jax.grad',
         ylabel='stream: sum over steps')
right.loglog(LENGTHS, sequences, 'o-', color='#000000', label='whole sequences')
right.loglog(LENGTHS, len(LENGTHS) * [step_alone + traces], 's--', color='#D55E00', label='stream')
right.set(title='Memory does not grow', xlabel='length of the sequence', ylabel='memory in MB')
right.legend()
plt.show()

# %% [markdown]
# The price is a trace for each weight and sample: a stream pays off when sequences are long.
#
# ## Learning while it streams
#
# Now nothing ever ends. Three flip-flops: now and then a pulse of +1 or -1 arrives at an input,
# and its output is to keep the sign of the last one. Weights change at *every* step.

# %%
T, STREAMS = 10000, 32
pulses = random.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], size=(T, STREAMS, 3)).astype(np.float32)
kept = np.zeros_like(pulses)
for t in range(1, T):
  kept[t] = np.where(pulses[t] == 0, kept[t - 1], pulses[t])

stream = bioprop.online(Net(3), 'rflo')
variables = stream.model.init(jax.random.key(0), pulses[0][:, None])
adam = optax.adam(0.003)


@jax.jit
def live(variables, state):
  def step(carry, now):
    variables, state, moments = carry
    pulse, target = now
    found = stream.step(variables, state, pulse, lambda out: jnp.mean((out - target)**2))
    updates, moments = adam.update(found.grads, moments)
    variables = {**variables, 'params': optax.apply_updates(variables['params'], updates)}
    return (variables, found.state, moments), (found.loss, found.output[0])
  start = variables, state, adam.init(variables['params'])
  return jax.lax.scan(step, start, (pulses, kept))[1]


losses, outputs = live(variables, stream.init(variables, pulses[0]))

# %%
fig, axes = plt.subplots(1, 3, width_ratios=[1.2, 1, 1])
axes[0].semilogy(np.arange(0, T, 50), np.asarray(losses).reshape(-1, 50).mean(1))
axes[0].set(title='Error', xlabel='step', ylabel='mean squared error')
axes[0].set_yticks([0.1, 0.2, 0.5, 1], [0.1, 0.2, 0.5, 1])
axes[0].minorticks_off()
axes[0].set_xticks([0, 5000, 10000])
axes[0].axhline(kept.var(), color='0.6', lw=0.8, linestyle='-')
for ax, start in zip(axes[1:], (100, T - 100)):
  steps = np.arange(start, start + 100)
  ax.plot(steps, kept[steps, 0, 0], color='0.6', linestyle='-', lw=3, label='target')
  ax.plot(steps, outputs[steps, 0], color='#D55E00', linestyle='-', lw=1.2, label='output')
  ax.set(title=f'From step {start}', xlabel='step', ylim=(-1.8, 1.8), yticks=[-1, 0, 1])
axes[2].legend(loc='upper center', ncols=2, fontsize=9)
plt.show()

# %% [markdown]
# The grey line on the left is the error of an output that is always zero.
#
# ## What to change
#
# - The `Leaky` cell by `nn.GRUCell(64)` or an `nn.OptimizedLSTMCell(64)`: the rules find their
#   way. Does the stream still agree with `jax.grad`?
# - The leak from 0.8 to 0.5: units forget sooner. Which rules still learn to match?
# - `bioprop.make('rflo', feedback='symmetric')`: how much is due to the random feedback?
#
# **Next:** [Write your own rule](5_own_rule.html) · [Recurrent networks](../recurrent.html) ·
# [eight tasks under eight rules](../results/recurrent.html)
