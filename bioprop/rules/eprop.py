"""e-prop; see `EProp`."""
import dataclasses

from bioprop.rules.base import check_choice
from bioprop.rules.temporal import Spatial


@dataclasses.dataclass(frozen=True)
class EProp(Spatial):
  r"""Eligibility propagation: in time also `diag(W) g`; in space `Bᵀ g`, random or the readout's.

  As RFLO, but each neuron's own recurrent weight is kept (e-prop; Bellec et al. 2020, Nature
  Communications 11:3625): $W$ is replaced by its diagonal where errors travel back in time,

  $$ dh_{t-1} = \operatorname{diag}(W)\, g_t + \text{what the cell carries elementwise} $$

  so that the eligibility trace of a synapse follows all that happens inside of one neuron (in
  linear networks: Williams, Payeur & Lajoie, arXiv 2606.00243). Errors reach the neurons through
  broadcast weights. Where a recurrent weight holds several matrices side by side (the gates of an
  optimised LSTM), each has its diagonal; of a convolution it is the centre of the kernel, each
  channel with itself.

  Attributes:
    feedback: the broadcast weights: 'random', 'symmetric' (the readout's own) or 'adaptive' (random
      at first, then changed as the readout is; with weight decay they align, as in Kolen-Pollack).
    scale: factor on random feedback; 1 draws it as large as the layer's initial weights.
    recurrent: patterns of the paths of recurrent ops, in place of those that are found.

  Cost:
    Whole sequences of 100 to 10 000 steps of a GRU take 0.96 to 1.08 of backprop's time, and its
    memory; as a stream (`bioprop.online`) 6.0 to 6.6 times, and 1.8 MB however long it is.

  When it works:
    As `rflo`, a little above it: delayed match 99.8 % (bp 100), MNIST by rows 93 (98), copy 25
    (100, last_layer 74).

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    net = nn.Sequential([nn.RNN(nn.GRUCell(16)), nn.Dense(2)])
    model = bioprop.plug(net, bioprop.make('eprop', feedback='symmetric'))
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 20, 3)))
    ```
  """
  papers = ('bellec2020solution',)

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
