"""Only the readout learns; see `LastLayer`."""
import dataclasses

from bioprop.rules.base import Credit, Rule


@dataclasses.dataclass(frozen=True)
class LastLayer(Rule):
  r"""Readout alone: `dx = 0`: only the readout learns.

  The baseline that every rule of hidden layers has to beat. Every layer keeps its initial weights
  but those whose output reaches the network's output through no other layer; these receive their
  true gradient:

  $$ dW_L = x_L^\top e , \qquad dx = 0 $$

  It is the lazy limit of direct feedback alignment and of the Hebbian rule in Bordelon & Pehlevan
  2023 (arXiv 2210.02157, section 2), and the baseline of Boopathy & Fiete 2022 (arXiv 2106.08453).
  In time, recurrent weights keep their initial values too.

  Cost:
    A step takes 0.84 of plain Flax's on the MLP. No state is kept.

  When it works:
    Better than one thinks, where random features serve: digits 96.2 % (bp 97.8), 74 % of MNIST by
    rows (98), cue accumulation 93.7 % (100). A rule that is no better has taught hidden layers
    nothing.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'last_layer')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  papers = ('bordelon2023influence', 'boopathy2022train')
  sends = False
  multiplies = True

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; nothing is sent; see `Rule.backward`."""
    del feedback, e
    return Credit(op.update(params, x, g), None)
