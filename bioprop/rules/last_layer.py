"""Only the readout learns: the baseline that every rule of hidden layers has to beat.

Every layer keeps its initial weights but those whose output reaches the network's output through no
other layer; these receive their true gradient (the lazy limit of direct feedback alignment and of
the Hebbian rule in Bordelon & Pehlevan 2023, arXiv 2210.02157, section 2, and the baseline of
Boopathy & Fiete 2022, arXiv 2106.08453). In time: recurrent weights keep their initial values too.
"""
import dataclasses

from bioprop.rules.base import Credit, Rule


@dataclasses.dataclass(frozen=True)
class LastLayer(Rule):
  """No layer sends anything down, so that hidden layers learn nothing."""
  sends = False
  multiplies = True

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; nothing is sent; see `Rule.backward`."""
    del feedback, e
    return Credit(op.update(params, x, g), None)
