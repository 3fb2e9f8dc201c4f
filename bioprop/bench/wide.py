"""Networks of finite width, trained as the theory of infinite width has it, with their kernels.

A plugged MLP in the scale of feature learning ('mup'), without biases and with one output, follows
its rule by plain SGD on all samples at once, on SUM |f - f_0 - y|^2 / 2, with the learning rate
eta gamma_0^2 N. Kernels are what `bioprop.measure` finds at each step, in the units of Bordelon &
Pehlevan 2023 (arXiv 2210.02157).
"""
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop import measure
from bioprop.models import MLP
from bioprop.plug.linen import wrap
from bioprop.probes.jacobian import jacobians as make_jacobians
from bioprop.rules import AnyRule, make
from bioprop.typing import Array


class Trained(NamedTuple):
  """Over T steps, of P samples, at equal times; means over seeds or of one network.

  Attributes:
    f: outputs [T, P], less those before the first step.
    entk: K [T, P, P].
    phi: Phi^1, ..., Phi^L, [L, T, P, P].
    g_pseudo: G~^1, ..., G~^L, [L, T, P, P].
    correlation: of g and g~, mean over layers and samples [T]; NaN where the rule sends no g~.
  """
  f: np.ndarray
  entk: np.ndarray
  phi: np.ndarray
  g_pseudo: np.ndarray
  correlation: np.ndarray


def rule_of(name: str, gamma0: float, width: int, rho: float = 0.0) -> AnyRule:
  """The library's rule at the scale that the theory has it; see bioprop/theory/march.py."""
  # Hebb's post-synaptic activity is what the next layer sees, phi(h) / sqrt(N).
  scale = {'fa': {'rho': rho, 'scale': 1.0}, 'dfa': {'scale': 1 / gamma0},
           'hebb': {'scale': 1 / (gamma0 * math.sqrt(width)), 'reduction': 'sum'}}
  return make(name, **scale.get(name, {}))


def train(rule: str, x: Array, y: Array, *, width: int, depth: int, gamma0: float,
          learning_rate: float, steps: int, seed: int = 0, rho: float = 0.0,
          phi: str | Callable[[Array], Array] = 'tanh') -> Trained:
  """Trains one network, and measures it before each step.

  Args:
    rule: a rule of `bioprop.theory.solve_dmft`.
    x: inputs [P, D].
    y: targets [P].
    width: N.
    depth: hidden layers, L.
    gamma0: richness.
    learning_rate: eta.
    steps: T.
    seed: of the weights, the feedback and the gates.
    rho: correlation of fa's feedback with the initial weights.
    phi: the nonlinearity, as `bioprop.models.MLP` takes it.
  """
  network = _Network(rule, width, depth, gamma0, rho, phi)
  variables = network.model.init(jax.random.key(seed), x)
  network.check(variables, x)
  return Trained(*map(np.asarray, _trained(network, steps, variables, x, y, learning_rate)))


class _Network(NamedTuple):
  """What is trained, by value: equal ones are compiled once."""
  rule: str
  width: int
  depth: int
  gamma0: float
  rho: float
  phi: str | Callable[[Array], Array]

  @property
  def plain(self) -> MLP:
    return MLP(classes=1, hidden=(self.width,) * self.depth, activation=self.phi,
               parametrization='mup', gamma0=self.gamma0, use_bias=False)

  @property
  def model(self):
    return wrap(self.plain, rule_of(self.rule, self.gamma0, self.width, self.rho))

  def check(self, variables, x):
    """Prepares the derivatives, which needs real numbers once."""
    _jacobians(self, x.shape, x.dtype).true(variables)

  def measured(self, variables, x, delta):
    """K, Phi, G~ and the correlation at one time; delta [P] is what Hebb is modulated by."""
    jacobians = _jacobians(self, x.shape, x.dtype)
    true, error = jacobians.true(variables)(x), -delta[:, None]
    if self.rule == 'hebb':
      pseudo = _by_error(true, jacobians.update(variables)((x, error)), error)
    else:
      pseudo = jacobians.pseudo(variables)(x)
    found = measure.features(true, pseudo)
    layers = [found[f'Dense_{at}/kernel'] for at in range(self.depth + 1)]
    fan_in = [x.shape[1]] + [self.width] * self.depth
    phi = jnp.stack([one.phi * jnp.asarray(n, x.dtype) for one, n in zip(layers, fan_in)])
    # g of the paper is gamma_0 N times the derivative of f.
    signals = jnp.stack([one.g_pseudo for one in layers[:-1]]) * self.gamma0**2 * self.width
    squares = [jnp.einsum('lnn->ln', jnp.stack([getattr(one, name) for one in layers[:-1]]))
               for name in ('g', 'pseudo', 'g_pseudo')]
    correlation = jnp.mean(squares[2] / jnp.sqrt(squares[0] * squares[1]))
    return phi[-1] + jnp.sum(signals * phi[:-1], 0), phi[1:], signals, correlation


def _by_error(true, update, error):
  """Hebb's Jacobian: it is not linear in the error, and this is its update over this error.

  The update of a weight is a matrix a g~^T for each sample, and a is known.
  """
  error = jnp.where(error == 0, 1, error)[:, None]
  outer = dict(update.outer)
  for path, matrix in update.full.items():
    a = true.outer[path][0][:, 0]
    matrix = matrix.reshape(len(a), a.shape[1], -1)
    g = jnp.einsum('nk,nko->no', a, matrix) / jnp.sum(jnp.square(a), 1, keepdims=True)
    outer[path] = a[:, None], g[:, None, None]
  return measure.Jacobian({path: (a, g / error[..., None]) for path, (a, g) in outer.items()}, {})


@functools.lru_cache(maxsize=16)
def _jacobians(network, shape, dtype):
  return make_jacobians(network.model, jax.ShapeDtypeStruct(shape, dtype))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(network, steps, variables, x, y, learning_rate):
  """The whole training as one program."""
  model, factor = network.model, network.plain.learning_rate_factor
  optimiser = optax.sgd(learning_rate * factor)
  frozen = {name: one for name, one in variables.items() if name != 'params'}
  output = lambda params: model.apply({'params': params, **frozen}, x)[:, 0]
  start = output(variables['params'])

  def loss(params):
    f = output(params) - start
    return jnp.sum(jnp.square(f - y)) / 2, f

  def step(carry, _):
    params, state = carry
    grads, f = jax.grad(loss, has_aux=True)(params)
    found = network.measured({'params': params, **frozen}, x, y - f)
    updates, state = optimiser.update(grads, state)
    return (optax.apply_updates(params, updates), state), (f, *found)

  initial = variables['params'], optimiser.init(variables['params'])
  _, (f, entk, phi, signals, correlation) = jax.lax.scan(step, initial, None, steps)
  by_layer = lambda kernels: kernels.swapaxes(0, 1)
  return f, entk, by_layer(phi), by_layer(signals), correlation
