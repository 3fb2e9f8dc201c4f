r"""RFLO, random-feedback local online learning (Murray 2019, eLife 8:e43299).

Errors do not travel back in time through the recurrent weights, only through what each neuron
carries by itself; they reach the neurons through fixed random feedback. For Murray's network

  u_t = W h_{t-1} + W_in x_t ,   h_t = (1 - 1/tau) h_{t-1} + phi(u_t) / tau ,   y_t = W_out h_t ,

  p_t = (1 - 1/tau) p_{t-1} + phi'(u_t) h_{t-1}^T / tau ,   dW = sum_t (B e_t) * p_t ,

and likewise dW_in with x_t; dW_out = sum_t e_t h_t^T. No trace is stored here: backward through the
scan, with recurrent ops that send nothing, these sums are the gradient, to rounding. With other
cells (GRU, LSTM) what the cell carries elementwise, its gates, takes the leak's place.

Linear networks h_t = W h_{t-1} + B x_t carry nothing by themselves. Williams, Payeur & Lajoie
(arXiv 2606.00243) put w^ I in place of W there: `leak` is w^.
"""
import dataclasses

import jax.numpy as jnp

from bioprop.rules.base import check_choice, check_range
from bioprop.rules.temporal import Spatial


@dataclasses.dataclass(frozen=True)
class RFLO(Spatial):
  """Random-feedback local online learning.

  Attributes:
    leak: recurrent ops send `leak` times what arrived at each neuron back to it, one step earlier;
      for models that have no leak of their own. 0: nothing.
    feedback: errors leave other ops through 'random' weights, their own ('symmetric'), or weights
      that learn as in Kolen-Pollack ('learned': random at first, updated as their own are).
    scale: factor on random feedback; 1 draws it as large as the layer's initial weights.
    recurrent: patterns of the paths of recurrent ops, in place of those that are found.
  """
  leak: float = 0.0

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
