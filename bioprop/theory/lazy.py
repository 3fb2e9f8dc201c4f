r"""Kernels of infinitely wide dense networks in the lazy limit, under backprop and other rules.

The network has L hidden layers of width N -> infinity, and weights and biases that start as

  h^1 = s_0 W^0 x / sqrt(D) + b^0 ,   h^{l+1} = s_l W^l phi(h^l) / sqrt(N) + b^l ,
  f = h^{L+1} / gamma ,   gamma = gamma_0 sqrt(N) ,   W ~ N(0, 1) ,   b^l ~ N(0, beta_l) ,

s_l^2 being the weights' variance and beta_l the biases'. In the lazy limit, gamma_0 -> 0 (or a
gamma that does not grow with N), features stay, and under gradient flow at the rate gamma^2 of the
loss SUM_x' l(f(x')) the output moves by

  df(x) / dt = - SUM_x' K(x, x') l'(f(x')) ,
  K = SUM_l G~^{l+1} o (s_l^2 Phi^l + r_l) ,   l = 0 .. L

(Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 6 and table 2), o being the product of
entries and r_l what a trained bias adds. With S^{l+1} = s_l^2 Phi^l + beta_l,

  Phi^0 = x . x' / D ,   Phi^l = E phi(u) phi(u') ,   u ~ N(0, S^l) ,
  G^{L+1} = 1 ,   G^l = s_l^2 G^{l+1} o E phi'(u) phi'(u')

are the kernels of activities and of gradients. What rules differ in is G~^l, the correlation of the
gradient g^l with the rule's own:

  bp, align_prop, align_ada, align_zero     G^l
  fa                                        (scale rho)^{L+1-l} G^l
  dfa, hebb, last_layer                     0 for l <= L, so that K = s_L^2 Phi^L + r_L
  gln                                       G^l, of the network phi'(m^l) h^l with gates m^l ~
                                            N(0, x . x' / D) of the input, each layer its own:
                                            Phi^l = E phi'(m) phi'(m') o S^l , and G^l likewise

Misprints of the paper: its section 3.3 has the exponent L - l for fa, and its table 2 a kernel of
gln that is L times, not L + 1 times, [E phi'(m) phi'(m')]^L K^x; counting layers, and networks of
finite width, give what stands here.
"""
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import checks
from bioprop.theory.activations import Activation, Linear, Quadrature
from bioprop.theory.activations import Function as Elementwise
from bioprop.theory.elementwise import as_activation
from bioprop.theory.fields import kernels
from bioprop.theory.fields.derivatives import Credit
from bioprop.theory.fields.leaves import (
    Added,
    Field,
    Function,
    Gate,
    Given,
    Mixed,
    Parameter,
    Term,
    Weighted,
)
from bioprop.theory.fields.positions import Dense
from bioprop.theory.piecewise import Piecewise
from bioprop.theory.slope import Slope
from bioprop.typing import Array, Float

PerLayer = float | Sequence[float]
Numbers = tuple[float, ...]
Summed = Quadrature | Piecewise

# Those that send the gradient itself, and those whose hidden layers get what it does not know of.
_EXACT = ('bp', 'align_prop', 'align_ada', 'align_zero', 'gln')
_BLIND = ('dfa', 'hebb', 'last_layer')
_RULES = (*_EXACT, 'fa', *_BLIND)
_NODES = (80, 160, 320, 640, 1280)  # Of quadrature; fewer than it has by itself are not believed.


class LazyKernels(NamedTuple):
  """Kernels of n samples with m, the layers' from the input up.

  Attributes:
    phi: Phi^0 .. Phi^L, of activities.
    g: G^1 .. G^{L+1}, of gradients.
    g_pseudo: G~^1 .. G~^{L+1}, of gradients with the rule's.
    layers: what the parameters between layers l and l + 1 add to the eNTK.
    entk: K, their sum, per output: between two outputs it is 0.
  """
  phi: Float[Array, 'L+1 n m']
  g: Float[Array, 'L+1 n m']
  g_pseudo: Float[Array, 'L+1 n m']
  layers: Float[Array, 'L+1 n m']
  entk: Float[Array, 'n m']


def lazy_kernels(
    x: Float[Array, 'n D'],
    depth: int,
    phi: str | Elementwise | Activation = 'relu',
    rule: str = 'bp',
    *,
    x2: Float[Array, 'm D'] | None = None,
    rho: float = 0.0,
    scale: float = 1.0,
    weight_variance: PerLayer = 1.0,
    bias_variance: PerLayer = 0.0,
    bias_rate: PerLayer | None = None,
) -> LazyKernels:
  """Computes the kernels of an infinitely wide network under a rule, in the lazy limit.

  K is that of outputs at the learning rate gamma^2: of a network `MLP(parametrization='mup')`
  (or 'ntk') it is `model.learning_rate_factor` times what `bioprop.measure.entk` finds. The
  library's models have bias_variance=0, and bias_rate=1 if use_bias; with bias_rate=None the biases
  are those of neural-tangents (b = s_b beta, beta trained).

  Of functions without closed forms the expectations are sums (`Quadrature`, or `Piecewise` where
  there are kinks), of as many terms as an error of 1.5e-8 takes, relative to a layer's largest
  entry (in float32 3e-4). A `Quadrature` or `Piecewise` is taken as it is.

  It can be under `jax.jit`: all but x and x2 is then static, sums have 320 terms, and kernels are
  NaN where these do not suffice. It takes O(depth n n') of memory.

  Args:
    x: samples.
    depth: L, the number of hidden layers.
    phi: the nonlinearity: a name, an activation, or a function; see `as_activation`.
    rule: a rule's name.
    x2: samples, whose errors move the outputs of x; None: x.
    rho: of 'fa', the correlation of the feedback with the initial weights.
    scale: of 'fa', the feedback's size over the weights'; the paper's is 1.
    weight_variance: s^2, one number or L + 1, from the first layer up.
    bias_variance: of the biases at the start, one number or L + 1.
    bias_rate: r, what a trained bias adds to its layer's kernel: the biases' learning rate over the
      weights', one number or L + 1. 0: there are none; None: bias_variance.

  Returns:
    The kernels, of x's dtype.

  Raises:
    TheoryError: if there is no such rule or nonlinearity, samples are not [n, D] of one D or not
      finite, or a number is outside its range.
    ConvergenceError: if sums do not converge, as those of a function of very large slope.
  """
  x, other = _samples('x', x), None if x2 is None else _samples('x2', x2)
  if other is not None and other.shape[1:] != x.shape[1:]:
    raise TheoryError(f'x2 has {other.shape[1]} features and x has {x.shape[1]}: one network sees '
                      f'both, so that its kernel needs the same. Pass x2 as [n\', {x.shape[1]}].')
  depth, sent = checks.whole('depth', depth, 1), _sent(rule, rho, scale)
  bias_rate = bias_variance if bias_rate is None else bias_rate
  weights, biases, rates = (
      checks.per_layer(name, value, depth + 1) for name, value in (
          ('weight_variance', weight_variance), ('bias_variance', bias_variance),
          ('bias_rate', bias_rate)))
  activation = as_activation(phi)
  run = lambda activation, sent: _kernels(
      x, other, activation, rule == 'gln', sent, weights, biases, rates)
  if activation is phi or not isinstance(activation, Summed):
    return run(activation, sent)
  activation, right = _accurate(lambda activation: run(activation, 1.0), activation)
  return jax.tree.map(lambda k: jnp.where(right, k, jnp.nan), run(activation, sent))


def _accurate(run: Callable[[Activation], LazyKernels],
              activation: Summed) -> tuple[Summed, Array]:
  """The activation with so many nodes that its error is small; whether it is, if that is traced.

  The error of N nodes is the change that comes of 2 N. It falls like exp(-b sqrt(N)), which gives
  that of 2 N from the change before.
  """
  coarse, before = run(dataclasses.replace(activation, nodes=_NODES[0])), 1.0
  enough = float(jnp.finfo(coarse.entk.dtype).eps)**0.5
  for nodes in _NODES[1:]:
    finer = dataclasses.replace(activation, nodes=nodes)
    fine = run(finer)
    change = _change(coarse, fine)
    error = change * jnp.minimum(change / before, 1)**2**0.5
    if nodes >= activation.nodes and (isinstance(error, jax.core.Tracer) or error <= enough):
      return finer, error <= enough
    coarse, before = fine, jnp.maximum(change, jnp.finfo(change.dtype).tiny)
  name = getattr(activation.function, '__name__', repr(activation.function))
  raise ConvergenceError(
      f'the expectations of phi={name} are sums whose error, at {_NODES[-1]} terms, is about '
      f'{float(error):.2g} of the kernels, and {enough:.2g} was to be reached: phi bends too fast '
      f'for pre-activations as large as these. Scale the samples to norm sqrt(D), '
      f'x * (x.shape[1] / (x**2).sum(1, keepdims=True))**0.5, lower weight_variance, or, to bear '
      f'the error, type phi=Quadrature(function, nodes={_NODES[-1]}).')


@jax.jit
def _change(coarse: LazyKernels, fine: LazyKernels) -> Array:
  """The largest change of a layer's kernels, relative to their largest entry."""
  largest = lambda k: jnp.max(jnp.abs(k), (-2, -1))
  tiny = jnp.finfo(fine.entk.dtype).tiny
  return jnp.max(jnp.stack([largest(b - a) / jnp.maximum(largest(b), tiny)
                            for a, b in ((coarse.phi, fine.phi), (coarse.g, fine.g))]))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def _kernels(x: Array, other: Array | None, activation: Activation, gated: bool, sent: float,
             weights: Numbers, biases: Numbers, rates: Numbers) -> LazyKernels:
  output, ops = _network(activation, gated, weights, rates)
  variances = {f'w{at}': weight for at, weight in enumerate(weights)} | {
      f'b{at}': bias for at, bias in enumerate(biases)}
  sides = tuple((side / math.sqrt(side.shape[1]),) for side in (x, x if other is None else other))
  credit = Credit({op.number: 1.0 for op in ops}, {op.number: sent for op in ops})
  found = kernels.find(output, credit, sides, other is None, variances, x.dtype)
  by_layer = lambda of: jnp.stack([of[op.number] for op in ops])
  layers = jnp.stack([found.shares[f'w{op.number}'] + found.shares[f'b{op.number}'] for op in ops])
  return LazyKernels(by_layer(found.phi), by_layer(found.g), by_layer(found.g_pseudo), layers,
                     found.entk)


def _network(activation: Activation, gated: bool, weights: Numbers, rates: Numbers
             ) -> tuple[Field, list[Weighted]]:
  """The output of dense layers, and their weights; a layer's inputs are a mean over features."""
  inputs, ops = ((1, Given(0)),), []
  for at, (weight, rate) in enumerate(zip(weights, rates)):
    op = Weighted((), Parameter(f'w{at}', math.sqrt(weight)), inputs, Dense(()), at, 1)
    bias = Added((), Parameter(f'b{at}', math.sqrt(rate)), None, op)
    ops.append(op)
    h = Mixed((), (Term(op), Term(bias)))
    if gated:  # Each layer has gates of its own.
      atoms, factors = (Gate((), Given(0)), h), (Slope(activation), Linear())
    else:
      atoms, factors = (h,), (activation,)
    value = Function((), atoms, activation, functools.partial(tuple, factors))
    inputs = ((1, (Term(value),)),)
  return h.field, ops


def _sent(rule: str, rho: float, scale: float) -> float:
  """The factor on G~ for each layer that the rule sends an error down through."""
  if rule not in _RULES:
    raise TheoryError(f'rule={rule!r} has no lazy limit here: the rules are {", ".join(_RULES)}. '
                      f'Type rule=\'fa\', or rule=\'bp\' for backprop.')
  rho, scale = checks.number_of(rho), checks.number_of(scale)
  if not 0 <= rho <= 1 or not 0 <= scale < math.inf:
    raise TheoryError(f'rho={rho} and scale={scale} are to be in [0, 1] and at least 0: they are '
                      f'a correlation and a size. Type rho=0.5, scale=1.0.')
  if rule != 'fa' and (rho, scale) != (0.0, 1.0):
    raise TheoryError(f'rho={rho} and scale={scale} are of the feedback of rule=\'fa\', and '
                      f'{rule!r} has none whose size or correlation would matter. Leave them '
                      f'out, or type rule=\'fa\'.')
  return rho * scale if rule == 'fa' else float(rule in _EXACT)


def _samples(name: str, x: Array) -> Array:
  """As `checks.inputs`, of what may be traced."""
  x = jnp.asarray(x)
  if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
    raise TheoryError(f'{name} is {x.dtype} {x.shape}, and is to be floating [n, D], with n and D '
                      f'above 0: samples with their features flattened. Pass '
                      f'jnp.asarray({name}, jnp.float32).reshape(n, -1).')
  if not isinstance(x, jax.core.Tracer) and not jnp.isfinite(x).all():
    raise TheoryError(f'{name} has entries that are infinite or NaN, and so would all its kernels '
                      f'be. Find them: jnp.argwhere(~jnp.isfinite({name})).')
  return x
