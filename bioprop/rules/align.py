r"""The input-weight-alignment rules (Boopathy & Fiete 2022, arXiv 2106.08453).

Each trains the network with the help of its frozen initial self. With e(t) the current error of the
network's output, a superscript 0 for the initial network on the same input, and l the layer:

  bp          dW_l = a_{l-1}^T delta_l       delta_l  = phi'(h_l)   (delta_{l+1}  W_{l+1}^T)
  align_prop  dW_l = a_{l-1}^T delta'_l      delta'_l = phi'(h_l)   (delta'_{l+1} W_{l+1}(0)^T)
  align_ada   dW_l = a_{l-1}^T delta0_l      delta0_l = phi'(h0_l)  (delta0_{l+1} W_{l+1}(0)^T)
  align_zero  dW_l = a0_{l-1}^T delta0_l     as align_ada

all from delta_L = e(t). At initialisation all four are equal; in wide networks they stay close, as
the weights align with the activities that they see. align_prop is feedback alignment with B = W(0);
align_zero moves the parameters along the network's linearisation (its lazy limit) while the output
is the network's own. The same holds for every other parameter, such as a normalisation's scale. In
time, errors travel back through W(0) of recurrent weights; the initial network runs through the
same sequence, and under align_ada and align_zero its states decide at every step.

The authors' code lets the last hidden layer's own update under align_ada use the current phi', as
its pooling is not stopped there; here all of delta0 is the initial network's, as defined.

Weights that begin at zero, as those of some transformers do, send nothing for ever: what lies below
them does not learn by any of the three.

Cost: align_prop that of feedback alignment; align_ada and align_zero one more forward pass, of the
initial network. Memory: the initial parameters, and the twin's activations where its local
derivatives need them.
"""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import Credit, Rule, check_choice
from bioprop.rules.network import NetworkRule, relay, stop


@dataclasses.dataclass(frozen=True)
class AlignProp(Rule):
  """align_prop: feedback alignment with the initial weights as feedback."""
  multiplies = True

  def init_feedback(self, key, site):
    """B = W(0) for each weight of the op; see `Rule.init_feedback`."""
    del key
    return {name: _copies(site.params[name]) for name in site.op.weights} if site.sends else None

  def sent_through(self, weights, feedback):
    """B; see `Rule.sent_through`."""
    del weights
    return feedback

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; g sent through W(0); see `Rule.backward`."""
    del e
    dx = None if feedback is None else op.send(feedback, params, x, g)
    return Credit(op.update(params, x, g), dx)


class _Frozen(NetworkRule):
  """Keeps the initial parameters as its feedback."""
  keeps_weights = True

  def init_feedback(self, key, network, params):
    """{'initial': the initial parameters}; see `NetworkRule.init_feedback`."""
    del key, network
    return {'initial': _copies(params)}


@dataclasses.dataclass(frozen=True)
class AlignZero(_Frozen):
  """align_zero: the initial network's gradient at the current error."""
  multiplies = ('initial', 'initial')

  def run(self, network, params, feedback):
    """The network's output, and the initial network's gradient; see `NetworkRule.run`."""
    out, state = stop(network.function(params, network.inputs))
    initial = relay(feedback['initial'], params)
    return relay(out, network.function(initial, network.inputs)[0]), state


@dataclasses.dataclass(frozen=True)
class AlignAda(_Frozen):
  """align_ada: the initial network's errors times the current activities.

  Attributes:
    same_time_error: False: as in the authors' code for recurrent networks, where a step's
      parameters receive the errors of later steps, through the state that is carried on, and not
      the error of what the same step puts out. It is then not backprop at initialisation. Models
      without a scan learn as under True.
  """
  same_time_error: bool = True
  multiplies = ('now', 'initial')

  def __post_init__(self):
    check_choice(self, 'same_time_error', (True, False))

  def run(self, network, params, feedback):
    """The network's output; errors go down the initial network; see `NetworkRule.run`."""
    return network.twin(params, feedback['initial'], self.same_time_error)


def _copies(tree):
  # Not the same buffers: a training step may donate the parameters.
  return jax.tree.map(jnp.copy, tree)
