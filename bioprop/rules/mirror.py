r"""Weight mirror (Akrout et al. 2019, arXiv 1904.05391, section 4 and equation 7).

Feedback that learns to be the transpose of the forward weights without ever reading them: a layer
is driven by noise, and its feedback weights learn from the correlation between the noise xi that
goes in and the response y = W xi that comes out, since E[xi y^T] = sigma^2 W^T:

  dx = B^T g ,   B moves towards the mean of xi y^T .

The paper lets B grow by eta xi y^T and decay at a rate of its own, so that it settles at a multiple
of W. Here its pseudogradient is rate (B - xi y^T / n), xi ~ N(0, 1), n the number of products that
each weight takes part in: it settles at W itself, whatever the optimiser. B is a parameter beside
the kernel in `params`, as under Kolen-Pollack; but it needs no weight decay, and it follows W from
any start. The paper alternates phases of noise and of training; here every step does both,
each layer by itself, so that no noise reaches the output. It costs two more products a layer. In
time, errors travel back through the B of a recurrent weight.
"""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import Credit, Rule, check_range


@dataclasses.dataclass(frozen=True)
class WeightMirror(Rule):
  """Weight mirror: feedback that learns from noise.

  Attributes:
    rate: factor on the feedback's pseudogradient: its learning rate over that of the weights.
    scale: factor on the initial feedback; 1 draws it as large as the layer's initial weights.
  """
  rate: float = 1.0
  scale: float = 1.0
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
