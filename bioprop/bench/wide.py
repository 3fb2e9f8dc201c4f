"""Networks of finite width, trained as the theory of infinite width has it, with their kernels.

A plugged dense network in the scale of feature learning follows its rule by plain SGD on the sum of
losses of f - f_0, with the learning rate eta gamma_0^2 N. With the variances that are 1 and 0
unless others are asked for, it is MLP(parametrization='mup'). Kernels are what `bioprop.measure`
finds at each step, in the units of Bordelon & Pehlevan 2023 (arXiv 2210.02157).
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop import measure
from bioprop.fronts.plug import plug
from bioprop.probes.jacobian import jacobians as make_jacobians
from bioprop.rules import AnyRule, make
from bioprop.typing import Array

_LOSSES = {'mse': lambda f, y: jnp.sum(jnp.square(f - y)) / 2,
           'cross_entropy': optax.softmax_cross_entropy}


class Trained(NamedTuple):
  """Over T steps, of P samples, at equal times; means over seeds or of one network.

  Attributes:
    f: outputs [T, P], or [T, P, C] where targets are [P, C], less those before the first step.
    entk: K [T, P, P], or of all pairs of outputs [T, P, P, C, C].
    phi: Phi^1, ..., Phi^L, [L, T, P, P].
    g_pseudo: G~^1, ..., G~^L, [L, T, P, P], the mean over outputs.
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
          phi: str | Callable[[Array], Array] = 'tanh', loss: str = 'mse',
          weight_variance: Sequence[float] | None = None,
          bias_variance: Sequence[float] | None = None, momentum: float = 0.0,
          batches: Array | None = None) -> Trained:
  """Trains one network, and measures it before each step.

  Args:
    rule: a rule of `bioprop.theory.solve_dmft`.
    x: inputs [P, D].
    y: targets [P] or [P, C].
    width: N.
    depth: hidden layers, L.
    gamma0: richness.
    learning_rate: eta.
    steps: T.
    seed: of the weights, the feedback and the gates.
    rho: correlation of fa's feedback with the initial weights.
    phi: the nonlinearity: the name of a function in `flax.linen`, or a function.
    loss: 'mse' or 'cross_entropy'.
    weight_variance: s_l^2, L + 1; None: 1. Not under hebb, whose activities it would multiply.
    bias_variance: of the biases at the start, L + 1; None: there are no biases.
    momentum: of `optax.sgd`.
    batches: indices of samples [T - 1, B]; None: all at each step.
  """
  targets = y.reshape(len(y), -1)
  ones = (1.0,) * (depth + 1) if weight_variance is None else tuple(weight_variance)
  network = _Network(rule, width, depth, gamma0, rho, phi, targets.shape[1], loss, ones,
                     None if bias_variance is None else tuple(bias_variance))
  variables = network.model.init(jax.random.key(seed), x)
  network.check(variables, x)
  batches = np.tile(np.arange(len(x)), (steps, 1)) if batches is None else np.pad(
      batches, ((0, 1), (0, 0)))  # What is done after the last time is not seen.
  f, (entk, phis, signals, correlation) = jax.tree.map(np.asarray, _trained(
      network, momentum, True, variables, x, targets, learning_rate, jnp.asarray(batches)))
  by_layer = lambda kernels: kernels.swapaxes(0, 1)
  found = Trained(f, entk, by_layer(phis), by_layer(signals), correlation)
  if y.ndim == 2:
    return found
  return found._replace(f=found.f[..., 0], entk=found.entk[..., 0, 0])


def outputs(rule: str, x: Array, y: Array, *, width: int, depth: int, gamma0: float,
            learning_rate: float, steps: int, seed: int = 0, rho: float = 0.0,
            phi: str | Callable[[Array], Array] = 'tanh', loss: str = 'mse') -> np.ndarray:
  """f [T, P, C] of one network whose kernels, of targets y [P, C], may be too many; as `train`."""
  network = _Network(rule, width, depth, gamma0, rho, phi, y.shape[1], loss, (1.0,) * (depth + 1),
                     None)
  batches = jnp.tile(jnp.arange(len(x))[None], (steps, 1))
  variables = network.model.init(jax.random.key(seed), x)
  return np.asarray(_trained(network, 0.0, False, variables, x, y, learning_rate, batches)[0])


class _Dense(nn.Module):
  """Layers of width N with weights of variance s^2, and the readout divided by gamma_0 sqrt(N)."""
  network: '_Network'

  @nn.compact
  def __call__(self, x):
    net = self.network
    phi = getattr(nn, net.phi) if isinstance(net.phi, str) else net.phi
    for at in range(net.depth + 1):
      last = at == net.depth
      bias = 0.0 if net.biases is None else math.sqrt(net.biases[at])
      x = nn.Dense(
          net.outputs if last else net.width, use_bias=net.biases is not None,
          kernel_init=nn.initializers.normal(1.0), bias_init=nn.initializers.normal(bias))(
              x * math.sqrt(net.weights[at] / x.shape[-1]))
      x = x / (net.gamma0 * math.sqrt(net.width)) if last else phi(x)
    return x


class _Network(NamedTuple):
  """What is trained, by value: equal ones are compiled once."""
  rule: str
  width: int
  depth: int
  gamma0: float
  rho: float
  phi: str | Callable[[Array], Array]
  outputs: int
  loss: str
  weights: tuple[float, ...]
  biases: tuple[float, ...] | None

  @property
  def model(self):
    return plug(_Dense(self), rule_of(self.rule, self.gamma0, self.width, self.rho))

  def check(self, variables, x):
    """Prepares the derivatives, which needs real numbers once."""
    _jacobians(self, x.shape, x.dtype).true(variables)

  def measured(self, variables, x, delta):
    """K, Phi, G~ and the correlation at one time; delta [P, C] is what Hebb is modulated by."""
    jacobians = _jacobians(self, x.shape, x.dtype)
    true, error = jacobians.true(variables)(x), -delta
    if self.rule == 'hebb':
      pseudo = _by_error(true, jacobians.update(variables)((x, error)), error)
    else:
      pseudo = jacobians.pseudo(variables)(x)
    found = measure.features(true, pseudo)
    paths = [f'Dense_{at}/kernel' for at in range(self.depth + 1)]
    layers = [found[path] for path in paths]
    fan_in = [x.shape[1]] + [self.width] * self.depth
    phi = jnp.stack([one.phi * jnp.asarray(n, x.dtype) for one, n in zip(layers, fan_in)])
    seen = phi if self.biases is None else phi + 1  # A bias learns as a weight of an input 1.
    # g of the paper is gamma_0 N times the derivative of f.
    scale = self.gamma0**2 * self.width
    pairs = jnp.stack([_pairs(true.outer[path][1], pseudo.outer[path][1]) for path in paths[:-1]])
    entk = (scale * jnp.einsum('lnmcd,lnm->nmcd', pairs, seen[:-1]) +
            seen[-1][..., None, None] * jnp.eye(self.outputs)[None, None])
    signals = jnp.stack([one.g_pseudo for one in layers[:-1]]) * scale / self.outputs
    squares = [jnp.einsum('lnn->ln', jnp.stack([getattr(one, name) for one in layers[:-1]]))
               for name in ('g', 'pseudo', 'g_pseudo')]
    correlation = jnp.mean(squares[2] / jnp.sqrt(squares[0] * squares[1]))
    weights = jnp.asarray(self.weights[1:])[:, None, None]
    return entk, phi[1:] / weights, signals, correlation


def _pairs(g, pseudo):
  """Of all pairs of outputs, [n, C, 1, O] and [n, C, 1, O] -> [n, n, C, C]."""
  return jnp.einsum('ncto,mdto->nmcd', g, pseudo, precision='highest')


def _by_error(true, update, error):
  """Hebb's Jacobian: it is not linear in the errors, and this is its update as a share of each.

  The update of a weight is a matrix a g~^T for each sample, and a is known.
  """
  squares = jnp.sum(jnp.square(error), 1, keepdims=True)
  share = (error / jnp.where(squares == 0, 1, squares))[..., None, None]  # [n, C, 1, 1]
  outer = dict(update.outer)
  for path in update.full.keys() & true.outer.keys():  # Biases have no a.
    matrix = update.full[path]
    a = true.outer[path][0][:, 0]
    matrix = matrix.reshape(len(a), a.shape[1], -1)
    g = jnp.einsum('nk,nko->no', a, matrix) / jnp.sum(jnp.square(a), 1, keepdims=True)
    outer[path] = a[:, None], g[:, None, None]
  return measure.Jacobian({path: (a, g * share) for path, (a, g) in outer.items()}, {})


@functools.lru_cache(maxsize=16)
def _jacobians(network, shape, dtype):
  return make_jacobians(network.model, jax.ShapeDtypeStruct(shape, dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trained(network, momentum, measured, variables, x, y, learning_rate, batches):
  """The whole training as one program: f, and what `measured` says is measured at all times."""
  model, loss_of = network.model, jax.vmap(_LOSSES[network.loss])
  optimiser = optax.sgd(learning_rate * network.gamma0**2 * network.width,
                        momentum=momentum or None)
  frozen = {name: one for name, one in variables.items() if name != 'params'}
  output = lambda params, x: model.apply({'params': params, **frozen}, x)
  start = output(variables['params'], x)

  def loss(params, batch):
    return jnp.sum(loss_of(output(params, x[batch]) - start[batch], y[batch]))

  def step(carry, batch):
    params, state = carry
    f = output(params, x) - start
    delta = -jax.grad(lambda f: jnp.sum(loss_of(f, y)))(f)
    found = network.measured({'params': params, **frozen}, x, delta) if measured else ()
    updates, state = optimiser.update(jax.grad(loss)(params, batch), state)
    return (optax.apply_updates(params, updates), state), (f, found)

  initial = variables['params'], optimiser.init(variables['params'])
  return jax.lax.scan(step, initial, batches)[1]
