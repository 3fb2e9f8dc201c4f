# %% [markdown]
# # Your CNN under seven rules
#
# One convolutional network, written as anyone would write it, learns handwritten digits by
# backprop and by six rules that do without its transposed weights. You will see how a rule is
# plugged into a model, that the training loop stays what it was, which rules keep up, and why:
# what they send back points where the gradient points, or it does not. **One minute.**
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
from flax import nnx
from sklearn import datasets, model_selection

import bioprop

# %config InlineBackend.figure_format = 'retina'
# Okabe and Ito's colours: told apart by all eyes. Dashes: told apart in grey print.
COLOURS = ['#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9']
DASHES = ['-', '--', '-.', ':', '-', '--', '-.']
plt.rcParams.update({
    'axes.prop_cycle': plt.cycler(color=COLOURS) + plt.cycler(linestyle=DASHES),
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
    'figure.figsize': (7.2, 3.6), 'figure.constrained_layout.use': True, 'font.size': 11})

# %% [markdown]
# ## The data and the model
#
# The 1797 digits of 8 × 8 pixels that come with scikit-learn. Nothing is downloaded.

# %%
images, labels = datasets.load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
x, x_test, y, y_test = map(jnp.asarray, model_selection.train_test_split(
    images, labels.astype(np.int32), test_size=360, stratify=labels, random_state=0))

# %% [markdown]
# The model is plain Flax. It knows nothing of rules.


# %%
class CNN(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(8, (3, 3))(x))
    x = nn.tanh(nn.Conv(16, (3, 3), strides=2)(x))
    x = nn.tanh(nn.Dense(64)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


# %% [markdown]
# ## One line
#
# `bioprop.plug` gives a model with the same parameters and the same outputs, whose `jax.grad` is
# the rule's. What will learn how, `describe` says before anything is trained:

# %%
print(bioprop.describe(CNN(), 'dfa', x[:1]))

# %% [markdown]
# Under `dfa` each layer has feedback of its own: a fixed random weight from each of the 10 outputs
# to each number of the layer's *input*, through which the error goes to whatever made that input.
#
# A model in NNX is changed in place, and its loop runs on as before:

# %%
model = nnx.Sequential(nnx.Linear(64, 32, rngs=nnx.Rngs(0)), nnx.tanh,
                       nnx.Linear(32, 10, rngs=nnx.Rngs(0)))
flat = x[:100].reshape(100, -1)
gradient = nnx.grad(lambda m: m(flat).var())
exact = gradient(model)
bioprop.plug(model, 'dfa', nnx.Rngs(1), flat)  # A batch, for the shapes.
for at in (0, 2):
  moved = jnp.abs(gradient(model)['layers'][at]['kernel'][...] - exact['layers'][at]['kernel'][...])
  print(f'layer {at}: dfa and backprop differ by at most {moved.max():.3f}')

# %% [markdown]
# The readout (layer 2) gets the true error under every rule; what lies below does not.
#
# ## Your own loop
#
# Nothing of what follows knows of rules. All of training is one program, a scan over epochs of a
# scan over batches, and gives the parameters before each epoch. `variables` without `params` is
# the frozen feedback, which the loop carries along as it would carry batch statistics.

# %%
EPOCHS, BATCH = 16, 64
random = np.random.default_rng(0)
orders = np.stack([random.permutation(len(x))[:len(x) // BATCH * BATCH].reshape(-1, BATCH)
                   for _ in range(EPOCHS)])
# The same weight decay on everything: kp and pfa need it, as it makes feedback forget its start.
optimiser = optax.chain(optax.add_decayed_weights(2e-3), optax.sgd(0.05, momentum=0.9))


def loss_of(model, variables, x, y):
  return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, x), y).mean()


# %%
def train(model, variables):
  params, frozen = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  loss = lambda params, batch: loss_of(model, {'params': params, **frozen}, x[batch], y[batch])

  def step(carry, batch):
    params, state = carry
    updates, state = optimiser.update(jax.grad(loss)(params, batch), state, params)
    return (optax.apply_updates(params, updates), state), None

  epoch = lambda carry, batches: (jax.lax.scan(step, carry, batches)[0], carry[0])
  (last, _), before = jax.lax.scan(epoch, (params, optimiser.init(params)), orders)
  return jax.tree.map(lambda all, one: jnp.concatenate([all, one[None]]), before, last)


# %% [markdown]
# Seven rules, from one seed: the weights that they begin with are the same.
#
# | rule | what a layer sends to the one below, in place of $W^\top g$ |
# |---|---|
# | `bp` | $W^\top g$ |
# | `kp` | $B^\top g$, where $B$ gets the updates of $W$, and both decay (Kolen & Pollack 1994) |
# | `pfa` | the same through two matrices, one fixed and one learned (Li & Benna 2024) |
# | `usf` | $\operatorname{sign}(W)^\top g$, times one number (Liao, Leibo & Poggio 2016) |
# | `fa` | $B^\top g$, $B$ random and fixed (Lillicrap et al. 2016) |
# | `dfa` | $B e$, straight from the output's error $e$ (Nøkland 2016) |
# | `last_layer` | nothing: only the readout learns |

# %%
RULES = ['bp', 'kp', 'pfa', 'usf', 'fa', 'dfa', 'last_layer']
models = {rule: bioprop.plug(CNN(), rule) for rule in RULES}
starts = {rule: model.init(jax.random.key(0), x[:1]) for rule, model in models.items()}
courses = {rule: jax.jit(train, static_argnums=0)(models[rule], starts[rule]) for rule in RULES}

# %%
# The outputs are the model's own, whatever it learned by: one program for all rules.
weights = lambda params: {layer: {name: params[layer][name] for name in ('kernel', 'bias')}
                          for layer in params}
outputs = jax.jit(jax.vmap(lambda params: CNN().apply({'params': params}, x_test)))
for rule in RULES:
  wrong = outputs(weights(courses[rule])).argmax(-1) != y_test
  error = 100 * np.asarray(wrong.mean(1))
  plt.plot(np.arange(EPOCHS + 1), error, label=f'{rule}  {error[-1]:.1f}')
plt.yscale('log')
plt.yticks([2, 5, 10, 20, 50, 100], [2, 5, 10, 20, 50, 100])
plt.xlabel('epoch')
plt.ylabel('test error in %')
plt.title('How errors come back decides how well a network learns', loc='left')
plt.legend(title='rule, last error', loc='center left', bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Look at the order of the curves, and at the distance to `last_layer`, which is what a random
# network is worth with a trained readout: a rule that does not beat it has taught the hidden
# layers nothing. One test image is 0.28 %, so small differences are noise: train with other seeds
# before you believe one.
#
# ## Why: the angle to the gradient
#
# A rule descends where its pseudogradient has an angle of less than 90° to the gradient. To see it
# one needs nothing but `jax.grad`: of the plugged model, and of the plain one at the same
# parameters. Here of each layer, on 500 images.


# %%
def angles(model, variables, course):
  frozen = {k: v for k, v in variables.items() if k != 'params'}
  gradient = lambda model: lambda params: jax.grad(
      lambda params: loss_of(model, {'params': params, **frozen}, x[:500], y[:500]))(params)

  def at(params):
    cosine = lambda a, b: jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    pseudo, true = gradient(model)(params), gradient(CNN())(params)
    return {layer: jnp.degrees(jnp.arccos(cosine(
        pseudo[layer]['kernel'].ravel(), true[layer]['kernel'].ravel()))) for layer in true}

  return jax.lax.map(at, course)


found = {rule: jax.jit(angles, static_argnums=0)(models[rule], starts[rule], courses[rule])
         for rule in RULES[1:-1]}

# %%
fig, axes = plt.subplots(1, 3, sharey=True)
for layer, ax in zip(['Conv_0', 'Conv_1', 'Dense_0'], axes):
  for rule, colour, dashes in zip(RULES[1:-1], COLOURS[1:], DASHES[1:]):
    ax.plot(found[rule][layer], color=colour, linestyle=dashes, label=rule)
  ax.axhline(90, color='0.6', linestyle='-', lw=0.8)
  ax.set(title=layer, xlabel='epoch', ylim=(0, 120), xticks=[0, 5, 10, 15])
axes[0].set_yticks([0, 30, 60, 90, 120])
axes[0].set_ylabel('angle to the gradient in °')
axes[-1].legend(loc='center left', bbox_to_anchor=(1, 0.5))
fig.suptitle('Feedback that learns, or knows the signs, comes to follow the gradient')
plt.show()

# %% [markdown]
# Three things to see:
#
# - **`kp` and `pfa`** begin as random as `fa` does, on either side of 90°. Weight decay makes
#   weights and feedback forget how they began, and they meet.
# - **`usf`** is below 90° from the start, as signs are most of what there is to know of a matrix.
# - **`fa` and `dfa`**, whose feedback stays what it was, can only wait until the *weights* come to
#   agree with it. In the last hidden layer they do: this is feedback alignment. The further down,
#   the less: convolutions, which see the same weights at every position, align worst.
#
# ## What to change
#
# - `bioprop.plug(CNN(), {'Conv_*': 'bp', '*': 'dfa'})`: a rule for each layer, by its path. Does
#   `dfa` fail for its convolutions?
# - Replace `tanh` by `nn.relu`, and `fa` by `bioprop.make('fa', scale=1.0)`: feedback as large as
#   the weights, which ReLU networks do not bear ([why](../faq.html)).
# - Take the weight decay away. What becomes of `kp`?
#
# **Next:** [Watch an eNTK align](2_entk_aligns.html) · [all rules](../rules/index.html) · [use it
# in your own loop](../use.html)
