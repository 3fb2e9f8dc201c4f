"""The input-weight-alignment rules (Boopathy & Fiete 2022, arXiv 2106.08453).

Each trains the network with the help of its frozen initial self: `AlignProp` with its weights,
`AlignAda` with its errors, `AlignZero` with its errors and activities.
"""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import SendingRule, check_choice
from bioprop.rules.network import NetworkRule, relay, stop


@dataclasses.dataclass(frozen=True)
class AlignProp(SendingRule):
  r"""Align-prop: `dx = W(0)ᵀ g`.

  Feedback alignment with the initial weights as feedback, readout included (Boopathy & Fiete 2022,
  arXiv 2106.08453): $\delta_L = e$, the error, and

  $$ dW_l = a_{l-1}^\top \delta_l , \qquad
     \delta_l = \phi'(h_l) \odot \left( \delta_{l+1} W_{l+1}(0)^\top \right) $$

  At initialisation it is backprop; in wide networks it stays close, as the weights align with the
  activities that they see. In time, errors travel back through W(0) of recurrent weights. It is
  `fa` with rho=1.

  Cost:
    A step takes 0.98 of plain Flax's on the MLP. Memory: the initial weights.

  When it works:
    The wider the network the better: digits 97.7 % (bp 97.8). Weights that begin at zero, as those
    of some transformers do, send nothing for ever: what lies below them does not learn.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(10)]), 'align_prop')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  papers = ('boopathy2022train',)

  def init_feedback(self, key, site):
    """B = W(0) for each weight of the op; see `Rule.init_feedback`."""
    del key
    return {name: _copies(site.params[name]) for name in site.op.weights} if site.sends else None


class _Frozen(NetworkRule):
  """Keeps the initial parameters as its feedback."""
  keeps_weights = True

  def init_feedback(self, key, network, params):
    """{'initial': the initial parameters}; see `NetworkRule.init_feedback`."""
    del key, network
    return {'initial': _copies(params)}


@dataclasses.dataclass(frozen=True)
class AlignZero(_Frozen):
  r"""Align-zero: `dW = (x⁰)ᵀ δ⁰`, all of the initial network but `e`.

  The initial network's gradient at the current error (Boopathy & Fiete 2022, arXiv 2106.08453).
  With a superscript 0 for the initial network on the same input, and $\delta^0_L = e$, the
  network's own:

  $$ dW_l = (a^0_{l-1})^\top \delta^0_l , \qquad
     \delta^0_l = \phi'(h^0_l) \odot \left( \delta^0_{l+1} W_{l+1}(0)^\top \right) $$

  It moves the parameters along the network's linearisation (its lazy limit) while the output is the
  network's own; the same holds for every other parameter, such as a normalisation's scale. In time,
  the initial network runs through the same sequence, and its states decide at every step.

  Cost:
    A step takes 1.24 of plain Flax's on the MLP: one more forward pass. Memory: the initial
    parameters, and the twin's activations.

  When it works:
    Wide networks in a parametrisation that keeps them lazy. In narrow ones it depends on the
    initial features: digits 83.7 ± 13 % (bp 97.8), as one seed's do not serve. What lies below
    weights that begin at zero does not learn.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(10)]), 'align_zero')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  papers = ('boopathy2022train',)
  multiplies = ('initial', 'initial')

  def run(self, network, params, feedback):
    """The network's output, and the initial network's gradient; see `NetworkRule.run`."""
    out, state = stop(network.function(params, network.inputs))
    initial = relay(feedback['initial'], params)
    return relay(out, network.function(initial, network.inputs)[0]), state


@dataclasses.dataclass(frozen=True)
class AlignAda(_Frozen):
  r"""Align-ada: `dW = xᵀ δ⁰`, errors `δ⁰` of the frozen initial network.

  The initial network's errors times the current activities (Boopathy & Fiete 2022, arXiv
  2106.08453). With a superscript 0 for the initial network on the same input, and $\delta^0_L = e$,
  the network's own:

  $$ dW_l = a_{l-1}^\top \delta^0_l , \qquad
     \delta^0_l = \phi'(h^0_l) \odot \left( \delta^0_{l+1} W_{l+1}(0)^\top \right) $$

  At initialisation it is backprop; in wide networks it stays close. The same holds for every other
  parameter, such as a normalisation's scale. The authors' code lets the last hidden layer's own
  update use the current $\phi'$, as its pooling is not stopped there; here all of $\delta^0$ is the
  initial network's, as defined. In time, the initial network runs through the same sequence, and
  its states decide at every step.

  Attributes:
    same_time_error: False: as in the authors' code for recurrent networks, where a step's
      parameters receive the errors of later steps, through the state that is carried on, and not
      the error of what the same step puts out. It is then not backprop at initialisation. Models
      without a scan learn as under True.

  Cost:
    A step takes 1.28 of plain Flax's on the MLP: one more forward pass. Memory: the initial
    parameters, and the twin's activations.

  When it works:
    Wide networks: digits 97.3 % (bp 97.8) with 128 units. Narrow ones leave their initial selves,
    and may diverge or learn nothing: delayed match 50 % (100), MNIST by rows 71 (98). What lies
    below weights that begin at zero does not learn.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(10)]), 'align_ada')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  same_time_error: bool = True
  papers = ('boopathy2022train',)
  multiplies = ('now', 'initial')

  def __post_init__(self):
    check_choice(self, 'same_time_error', (True, False))

  def run(self, network, params, feedback):
    """The network's output; errors go down the initial network; see `NetworkRule.run`."""
    return network.twin(params, feedback['initial'], self.same_time_error)


def _copies(tree):
  # Not the same buffers: a training step may donate the parameters.
  return jax.tree.map(jnp.copy, tree)
