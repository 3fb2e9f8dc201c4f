"""Random-feedback local online learning; see `RFLO`."""
import dataclasses

import jax.numpy as jnp

from bioprop.rules.base import check_choice, check_range
from bioprop.rules.temporal import Spatial


@dataclasses.dataclass(frozen=True)
class RFLO(Spatial):
  r"""Random-feedback local online learning: in time the leak, or `leak · g`; in space `Bᵀ g`.

  Errors do not travel back in time through the recurrent weights, only through what each neuron
  carries by itself; they reach the neurons through fixed random feedback (RFLO; Murray 2019, eLife
  8:e43299). For Murray's network, $y_t = W_{\mathrm{out}} h_t$ and

  $$ u_t = W h_{t-1} + W_{\mathrm{in}} x_t , \qquad
     h_t = (1 - 1/\tau)\, h_{t-1} + \phi(u_t) / \tau $$

  $$ p_t = (1 - 1/\tau)\, p_{t-1} + \phi'(u_t)\, h_{t-1}^\top / \tau , \qquad
     dW = \sum_t (B e_t) \odot p_t $$

  and likewise $dW_{\mathrm{in}}$ with $x_t$; $dW_{\mathrm{out}} = \sum_t e_t h_t^\top$. No trace is
  stored here: backward through the scan, with recurrent ops that send nothing, these sums are the
  gradient, to rounding. With other cells (GRU, LSTM) what the cell carries elementwise, its gates,
  takes the leak's place.

  Attributes:
    leak: recurrent ops send `leak` times what arrived at each neuron back to it, one step earlier;
      for models that have no leak of their own, as linear networks $h_t = W h_{t-1} + B x_t$, where
      Williams, Payeur & Lajoie (arXiv 2606.00243) put $\hat w I$ in place of W. 0: nothing.
    feedback: errors leave other ops through 'random' weights, their own ('symmetric'), or weights
      that learn as in Kolen-Pollack ('learned': random at first, updated as their own are).
    scale: factor on random feedback; 1 draws it as large as the layer's initial weights.
    recurrent: patterns of the paths of recurrent ops, in place of those that are found.

  Cost:
    Whole sequences of 100 to 10 000 steps of a GRU take 1.01 to 1.04 of backprop's time, and its
    memory; as a stream (`bioprop.online`) 5.1 to 5.5 times, and 1.9 MB however long it is.

  When it works:
    Recurrent networks alone (others are refused), where the cell itself keeps what has to be kept:
    delayed match 99.7 % (bp 100), MNIST by rows 92.3 (98). Where it does not, worse than a trained
    readout: copy 25 (100, last_layer 74).

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.RNN(nn.GRUCell(16)), nn.Dense(2)]), 'rflo')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 20, 3)))
    ```
  """
  leak: float = 0.0
  papers = ('murray2019local',)

  def __post_init__(self):
    super().__post_init__()
    check_range(self, 'leak', -1.0, 1.0)
    check_choice(self, 'feedback', ('random', 'symmetric', 'learned'))

  @property
  def learns(self):
    """Whether feedback is a parameter; see `Rule`."""
    return self.feedback == 'learned'

  @property
  def meets_itself(self):
    """With a leak; see `Temporal`."""
    return self.leak != 0

  def through_time(self, weight, own):
    """w^ I; see `Spatial`."""
    return own(jnp.full_like(weight, self.leak)) if self.leak else None
