r"""e-prop: eligibility propagation (Bellec et al. 2020, Nat Commun 11:3625).

As RFLO, but each neuron's own recurrent weight is kept: W is replaced by its diagonal where errors
travel back in time,

  dh_{t-1} = diag(W) g_t + what the cell carries elementwise ,

so that the eligibility trace of a synapse follows all that happens inside of one neuron (in linear
networks: Williams, Payeur & Lajoie, arXiv 2606.00243). Errors reach the neurons through the
broadcast weights of Bellec et al.: 'symmetric' (the readout's own), 'random', or 'adaptive' (random
at first, then changed as the readout is; with weight decay they align, as in Kolen-Pollack).

Where a recurrent weight holds several matrices side by side (the gates of an optimised LSTM), each
has its diagonal; of a convolution it is the centre of the kernel, each channel with itself.
"""
import dataclasses

from bioprop.rules.base import check_choice
from bioprop.rules.temporal import Spatial


@dataclasses.dataclass(frozen=True)
class EProp(Spatial):
  """Eligibility propagation.

  Attributes:
    feedback: the broadcast weights: 'random', 'symmetric' or 'adaptive'.
    scale: factor on random feedback; 1 draws it as large as the layer's initial weights.
    recurrent: patterns of the paths of recurrent ops, in place of those that are found.
  """

  def __post_init__(self):
    super().__post_init__()
    check_choice(self, 'feedback', ('random', 'symmetric', 'adaptive'))

  @property
  def learns(self):
    """Whether feedback is a parameter; see `Rule`."""
    return self.feedback == 'adaptive'

  @property
  def meets_itself(self):
    """Always; see `Temporal`."""
    return True

  def through_time(self, weight, own):
    """diag(W); see `Spatial`."""
    return own(weight)
