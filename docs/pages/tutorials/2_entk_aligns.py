# %% [markdown]
# # Watch an eNTK align
#
# How a network's outputs move is one matrix: the *effective neural tangent kernel* of the network
# and its rule. You will measure it, see that it predicts a training step, and watch it while the
# network learns by backprop, by feedback alignment and as a gated linear network: from a matrix
# that knows what images look like to one that knows what they mean. **Half a minute.**
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
from sklearn import datasets

import bioprop

# %config InlineBackend.figure_format = 'retina'
# Okabe and Ito's colours: told apart by all eyes. Dashes: told apart in grey print.
COLOURS, DASHES = ['#000000', '#D55E00', '#0072B2'], ['-', '--', '-.']
plt.rcParams.update({
    'axes.prop_cycle': plt.cycler(color=COLOURS) + plt.cycler(linestyle=DASHES),
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.figsize': (7.2, 3.2), 'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# The task: is a digit even or odd? Images of a class look nothing like each other here, so the
# network has something to find. We measure on ten images of each digit, the even digits first: a
# kernel that sees pixels shows ten blocks, a kernel that knows the task shows two.

# %%
images, labels = datasets.load_digits(return_X_y=True)
x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels % 2, jnp.int32)
DIGITS = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
chosen = np.concatenate([np.flatnonzero(labels == digit)[:10] for digit in DIGITS])
x_seen, y_seen = x[chosen], y[chosen]


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(nn.Dense(128)(x))
    return 0.1 * nn.Dense(2)(x)  # A small readout: more is left to the features.


# %% [markdown]
# ## The kernel predicts a step
#
# Let $J(x)$ be the derivatives of the outputs in all parameters, and $\tilde J(x)$ what the rule
# takes for them. A step of size $\eta$ on the errors $e$ moves the parameters by
# $-\eta \sum_{x'} \tilde J(x')^\top e(x')$, and so the outputs by
#
# $$ \Delta f(x) = -\eta \sum_{x'} K(x, x')\, e(x'), \qquad K(x, x') = J(x)\, \tilde J(x')^\top . $$
#
# Under backprop this $K$ is the neural tangent kernel. Under any other rule it is not symmetric:
# row $x$ says what moves the output of $x$. Measured under feedback alignment:

# %%
model = bioprop.plug(Net(), bioprop.make('fa', scale=1.0))
variables = model.init(jax.random.key(0), x_seen)
jacobians = bioprop.measure.jacobians(model, x_seen)
K = bioprop.measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x_seen)
print('K, of two samples and two outputs:', K.shape)

# %% [markdown]
# And the step itself, by `jax.grad` of the plugged model:


# %%
@jax.jit
def moved(variables, size):
  output = lambda params: model.apply({**variables, 'params': params}, x_seen)
  loss = lambda out: optax.softmax_cross_entropy_with_integer_labels(out, y_seen).mean()
  params = variables['params']
  grads = jax.grad(lambda params: loss(output(params)))(params)
  after = output(jax.tree.map(lambda p, g: p - size * g, params, grads))
  return after - output(params), jax.grad(loss)(output(params))


fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6))
for ax, size in zip(axes, [0.1, 10.0]):
  real, error = moved(variables, size)
  predicted = -size * jnp.einsum('nmcd,md->nc', K, error)
  ax.axline((0, 0), slope=1, color='0.6', lw=1, linestyle='-')
  ax.plot(predicted.ravel(), real.ravel(), 'o', ms=2)
  off = jnp.linalg.norm(real - predicted) / jnp.linalg.norm(predicted)
  ax.set(title=f'step of {size:g}: off by {100 * off:.1f} %', xlabel='movement that K predicts')
  ax.locator_params(nbins=5)
axes[0].set_ylabel('movement of outputs')
plt.show()

# %% [markdown]
# Each point is one output of one sample. A small step is the kernel's; a large one leaves the
# straight line, because the kernel itself has changed on the way. That is what learning features
# means, and what comes next.
#
# ## A probe beside the loop
#
# `bioprop.measure.Probe` measures the kernel of the parameters that you give it, whenever you give
# them: your loop has no other line. Here it is asked before training and after each epoch.

# %%
EPOCHS, BATCH = 12, 64
random = np.random.default_rng(0)
orders = np.stack([random.permutation(len(x))[:len(x) // BATCH * BATCH].reshape(-1, BATCH)
                   for _ in range(EPOCHS)])
optimiser = optax.sgd(0.5, momentum=0.9)  # 100 times less for the outputs: their factor's square.


def epoch_of(model, frozen):
  loss = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
      model.apply({'params': params, **frozen}, x[batch]), y[batch]).mean()

  def step(carry, batch):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, state = optimiser.update(grads, state)
    return (optax.apply_updates(params, updates), state), value

  return jax.jit(lambda carry, order: jax.lax.scan(step, carry, order))


# %%
def watch(rule):
  """Trains by a rule, and returns what the probe found at each moment, and the losses."""
  model = bioprop.plug(Net(), rule)
  variables = model.init(jax.random.key(0), x_seen)
  params, frozen = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  probe = bioprop.measure.Probe(model, None, (x_seen, y_seen), types=['entk'])
  epoch, carry = epoch_of(model, frozen), (params, optimiser.init(params))
  found, losses = [probe.measure(variables)], []
  for order in orders:
    carry, values = epoch(carry, order)
    losses.append(float(values.mean()))
    found.append(probe.measure({'params': carry[0], **frozen}))
  return found, losses


RULES = {'bp': 'bp', 'fa': bioprop.make('fa', scale=1.0), 'gln': 'gln'}
seen = {name: watch(rule) for name, rule in RULES.items()}
print('measured at each moment:', ', '.join(seen['fa'][0][0]))

# %% [markdown]
# `gln` replaces the ReLU of each unit by a fixed gate, which opens or not by a random projection
# of the input, and learns what is left exactly (Bordelon & Pehlevan 2023). It can align its kernel
# by its weights alone, as its gates never change.
#
# ## Before and after
#
# What two kernels share, whatever they are of, is that everything moves everything. It says
# nothing about the task, and is taken off by centring, $HKH$ with $H = 1 - 1/n$.

# %%
centre = np.eye(100) - 1 / 100
fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.6), sharex=True, sharey=True)
for column, (rule, (found, _)) in zip(axes.T, seen.items()):
  for ax, one, moment in zip(column, (found[0], found[-1]), ('before', f'epoch {EPOCHS}')):
    kernel = centre @ one['kernel'] @ centre
    shown = ax.imshow(kernel / np.abs(np.diag(kernel)).mean(), cmap='PuOr_r', vmin=-1, vmax=1)
    ax.axhline(49.5, color='0.4', lw=0.6, linestyle='-')
    ax.axvline(49.5, color='0.4', lw=0.6, linestyle='-')
    ax.set_title(f'{rule}, {moment}', fontsize=11)
    ax.set_xticks(np.arange(5, 100, 10), DIGITS, fontsize=9)
    ax.set_yticks(np.arange(5, 100, 10), DIGITS, fontsize=9)
    ax.tick_params(length=0)
axes[0, 0].set_ylabel('digit whose output moves')
axes[1, 0].set_ylabel('digit whose output moves')
axes[1, 1].set_xlabel('digit whose error moves it')
fig.colorbar(shown, ax=axes, shrink=0.6, label='centred kernel / its diagonal')
plt.show()

# %% [markdown]
# Before training, an error on a 3 moves the outputs of what looks like a 3: small blocks.
# Afterwards it moves those of odd digits one way and those of even ones the other: two blocks, and
# opposite signs beside them.
#
# ## How aligned, and how many modes
#
# *Target alignment* is the cosine of the centred kernel with the ideal one, which has two blocks
# and nothing else. The *effective rank* counts the modes that matter, by the entropy of the
# spectrum.

# %%
fig, axes = plt.subplots(1, 3)
for rule, (found, losses) in seen.items():
  axes[0].plot(np.arange(1, EPOCHS + 1), losses, label=rule)
  axes[1].plot([one['target_alignment'] for one in found], label=rule)
  axes[2].plot([one['effective_rank'] for one in found], label=rule)
axes[0].set(title='training loss', yscale='log', xlabel='epoch')
axes[1].set(title='target alignment', ylim=(0, 1), xlabel='epoch')
axes[2].set(title='effective rank', ylim=(0, None), xlabel='epoch')
axes[2].legend()
fig.suptitle('The kernel turns to the task in the first epochs, under every rule')
plt.show()

# %%
for rule, (found, _) in seen.items():
  alignment = [one['target_alignment'] for one in found]
  print(f'{rule:3}  target alignment {alignment[0]:.2f}, at most {max(alignment):.2f}, at the end '
        f'{alignment[-1]:.2f}')

# %% [markdown]
# Look at three things:
#
# - The kernel aligns **early**, while the loss is still large. What is learned later are
#   exceptions, and some of the alignment is given up again for these.
# - **Feedback alignment aligns its kernel no less than backprop does**, although it learns more
#   slowly.
# - Fewer modes are active under `fa`. `gln`, whose gates depend on the input alone, begins with
#   the most, as no two images open the same gates.
#
# ## Who learns how much
#
# The kernel is a sum over parameters, and so is its trace, which is how fast samples learn from
# themselves. The probe has each parameter's share.

# %%
layers = ['Dense_0', 'Dense_1', 'Dense_2']
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(7.2, 2.8))
for ax, (rule, (found, _)) in zip(axes, seen.items()):
  for off, at, colour, moment in ((-0.2, 0, '#E69F00', 'before'), (0.2, -1, '#0072B2', 'after')):
    share = [found[at][f'share/{layer}/kernel'] + found[at][f'share/{layer}/bias']
             for layer in layers]
    ax.bar(np.arange(3) + off, share, 0.4, color=colour, edgecolor='k', lw=0.5, label=moment)
  ax.axhline(0, color='k', lw=0.6, linestyle='-')
  ax.set_title(rule)
  ax.set_xticks(range(3), layers, fontsize=9)
axes[0].set_ylabel('share of the trace')
axes[2].legend()
plt.show()

# %% [markdown]
# Under `fa` the lower layers begin with a share of about nothing, or less than nothing: random
# feedback is as likely to move outputs the wrong way as the right one. They gain theirs as weights
# and feedback align.
#
# ## What to change
#
# - The factor 0.1 of the readout to 1, and the learning rate to 0.005: a lazier network. How much
#   less does the kernel move?
# - `bioprop.make('fa', rho=0.5, scale=1.0)`: feedback that knows the initial weights by half.
# - `types=['entk', 'features', 'angles', 'alignment']`: all that a probe measures.
#
# **Next:** [Theory meets a network](3_theory_meets_a_network.html) · [Measure](../measure.html) ·
# [what larger networks do](../results/representation.html)
