"""Weight mirror; see `WeightMirror`."""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import Credit, Rule, check_range


@dataclasses.dataclass(frozen=True)
class WeightMirror(Rule):
  r"""Weight mirror: `dx = Bᵀ g`, `B` learns `W` from the layer's response to noise.

  Feedback that learns to be the transpose of the forward weights without ever reading them (Akrout
  et al. 2019, arXiv 1904.05391, section 4 and equation 7): a layer is driven by noise, and its
  feedback weights learn from the correlation between the noise $\xi$ that goes in and the response
  $y = W \xi$ that comes out, since $E[\xi y^\top] = \sigma^2 W^\top$:

  $$ dW = x^\top g , \qquad dx = B^\top g , \qquad dB = \mathrm{rate}\, (B - \xi y^\top / n) $$

  The paper lets $B$ grow by $\eta\, \xi y^\top$ and decay at a rate of its own, so that it settles
  at a multiple of $W$. Here $\xi \sim N(0, 1)$, and $n$ is the number of products that each weight
  takes part in: $B$ settles at $W$ itself, whatever the optimiser. It is a parameter beside the
  kernel in `params`, as under Kolen-Pollack; but it needs no weight decay, and it follows $W$ from
  any start. The paper alternates phases of noise and of training; here every step does both, each
  layer by itself, so that no noise reaches the output. In time, errors travel back through the B of
  a recurrent weight.

  Attributes:
    rate: factor on the feedback's pseudogradient: its learning rate over that of the weights.
    scale: factor on the initial feedback; 1 draws it as large as the layer's initial weights.

  Cost:
    A step takes 2.44 of plain Flax's on the MLP: two more products a layer, and the noise. Memory
    as `kp`.

  When it works:
    Where backprop does, once B has found W: digits 97.6 % (bp 97.8). It draws at every step:
    `apply(..., rngs={'feedback': key})` in linen. In NNX make the optimiser after `plug`.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    x = jax.numpy.ones((8, 64))
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'mirror')
    variables = model.init(jax.random.key(0), x)
    out = model.apply(variables, x, rngs={'feedback': jax.random.key(1)})
    ```
  """
  rate: float = 1.0
  scale: float = 1.0
  papers = ('akrout2019deep',)
  learns = True
  redraws = True
  multiplies = True

  def __post_init__(self):
    check_range(self, 'rate', 0.0)
    check_range(self, 'scale', 0.0)

  def init_feedback(self, key, site):
    """B(0) for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    return site.draw(key, self.scale)

  def sent_through(self, weights, feedback):
    """B; see `Rule.sent_through`."""
    del weights
    return {name: value for name, value in feedback.items() if name != 'key'}

  def backward(self, op, params, x, feedback, g, e):
    """g sent through B; B learns from noise; see `Rule.backward`."""
    del e
    update = op.update(params, x, g)
    b = self.sent_through(params, feedback)
    if not b or not jnp.issubdtype(x.dtype, jnp.inexact):  # Token ids: nothing is sent to them.
      return Credit(update, None)
    noise = jax.random.normal(feedback['key'], x.shape, x.dtype)
    bare = {name: w if name in op.weights else jax.tree.map(jnp.zeros_like, w)
            for name, w in params.items()}
    response = op(bare, noise)
    correlation = op.update(bare, noise, response)
    count = op.update(bare, jnp.ones_like(noise), jnp.ones_like(response))
    towards = lambda b, c, n: jnp.asarray(self.rate, b.dtype) * (b - c / jnp.maximum(n, 1))
    learned = {name: jax.tree.map(towards, b[name], correlation[name], count[name]) for name in b}
    return Credit(update, op.send(b, params, x, g), {**learned, 'key': None})
