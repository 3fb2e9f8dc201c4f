r"""Dynamical mean-field theory of wide networks that learn features, under any rule.

At infinite width the neurons of a layer are independent, each a copy of one random process
(Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 5 and table 1). In steps of size eta, with
g = phi'(h) z the true and g~ the rule's signal,

  h^l(t) = u(t) + sum_{s<t} [a^{l-1} g(s) + (c^{l-1} + gamma_0 eta Phi^{l-1} Delta(s)) g~(s)]
  z^l(t) = r(t) + sum_{s<=t} [b^l + gamma_0 eta 1[s<t] G~^{l+1} Delta(s)] phi(h(s))

where all kernels have the arguments (mu t; nu s), sums are also over the samples nu, and

  Phi^l = <phi phi> ,  G^l = <g g> ,  G~^l = <g g~> ,  G~~^l = <g~ g~> ,
  u^l ~ GP(0, Phi^{l-1}) ,  r^l ~ GP(0, G^{l+1}) ,
  a^l = <d phi(h^l) / d r^l> ,  b^l = <d g^{l+1} / d u^{l+1}> ,  c^l = <d phi(h^l) / d v^l> :

  rule    g~
  bp      phi'(h) z
  fa      phi'(h) z~,  z~ = rho v + sqrt(1 - rho^2) zeta + sum_{s<=t} d^l phi(h(s)),
          d^l = rho <d g~^{l+1} / d u^{l+1}>, v and zeta ~ GP(0, G~~^{l+1}), <r v> = G~^{l+1}
  dfa     phi'(h) z~,  z~ ~ N(0, 1), static
  gln     phi'(m) z,   and phi(h) becomes phi'(m) h, m ~ N(0, K^x)
  hebb    Delta phi(h)

Derivatives of averages are of steps, not of continuous time: a = gamma_0 A eta and so on in the
paper's letters; the term s = t is in b and d alone. Gradient descent with the learning rate eta
gamma_0^2 N on SUM l(f, y), width N, arrives at exactly these sums: the steps are not an
approximation of the flow, they are the network's own.

Method. All averages are over `samples` copies that are marched through time together, and every
quantity at a time depends on earlier ones alone, or on what the same step has found in the layer
below (h) or above (z): one pass solves the equations, and there is no fixed point to iterate.

  Gaussian fields   u^l(t) = R phi(h^{l-1}(t)), R a frozen random rotation of the copies (signs, a
                    cosine transform, signs; Ailon & Chazelle 2009): fields have the copies' own
                    kernel as covariance, jointly over all times, and no kernel is decomposed. So
                    have r, v and zeta of g and g~ above, with rotations of their own.
  Derivatives       every copy carries one tangent, along a direction p of its own in the T P
                    entries of u (or of r, or v), these being orthogonal over the copies. <J> is the
                    mean of (J p) p^T: exact for what copies have in common, and noise falls as
                    1 / sqrt(samples) for the rest. That is one tangent a copy and not T P.
                    Where phi has kinks there are none: bioprop/theory/responses.py.

Cost O(samples (T P)^2 depth), memory O(samples T P depth + depth (T P)^2); see `memory`.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.theory import copies, responses
from bioprop.theory.activations import Activation
from bioprop.typing import Array, Key

RULES = ('bp', 'fa', 'dfa', 'hebb', 'gln')


class Program(NamedTuple):
  """What a march is compiled for.

  Attributes:
    rule: one of `RULES`.
    phi: the nonlinearity.
    depth: hidden layers.
    steps: T, times.
    samples: S, copies of a neuron; at least T P where there are responses.
    loss: of one output [] and one target [], or 'mse'.
    without: response functions that are taken for 0, of 'abcd'.
  """
  rule: str
  phi: Activation
  depth: int
  steps: int
  samples: int
  loss: str | Callable[[Array, Array], Array]
  without: str = ''


class Setting(NamedTuple):
  """What a march is run on.

  Attributes:
    root: [P, P], of which K^x = root root^T.
    targets: y [P], and 1 [P] where a sample is trained on, 0 elsewhere.
    gamma0: richness [].
    rate: eta [].
    rho: correlation of the feedback with the initial weights [].
  """
  root: Array
  targets: tuple[Array, Array]
  gamma0: Array
  rate: Array
  rho: Array


class March(NamedTuple):
  """What a march found. Kernels are [depth, T, P, T, P].

  Attributes:
    f: outputs [T, P], less those at the start.
    delta: [T, P].
    phi: Phi^1, ..., Phi^depth.
    g: G^l.
    g_pseudo: G~^l, rows the true signals.
    pseudo: G~~^l.
    responses: by letter, of the layers 1, ..., depth - 1; only those that the rule has.
  """
  f: Array
  delta: Array
  phi: Array
  g: Array
  g_pseudo: Array
  pseudo: Array
  responses: dict[str, Array]


class _Layer(NamedTuple):
  """One layer's past [T, P, K, S]: K = 1 + the number of tangents, the field first."""
  phi: Array
  g: Array
  pseudo: Array


class _Frozen(NamedTuple):
  """One layer's random things: rotations of copies, and static fields [P, S] or [1, S]."""
  u: copies.Rotation
  r: copies.Rotation
  zeta: copies.Rotation
  gates: Array
  noise: Array


class _Past(NamedTuple):
  """What responses of one layer are estimated from where there are no tangents.

  Attributes:
    fields: u, r and v [T, P, S], by name.
    known: what is known of the responses to them, by letter.
  """
  fields: dict[str, Array]
  known: dict[str, responses.Estimate]


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')
def march(program: Program, setting: Setting, key: Key) -> March:
  """Solves the equations, from one draw of the copies."""
  return _March(program, setting, key).run()


class _March:
  """The equations' state and steps; all methods are traced."""

  def __init__(self, program: Program, setting: Setting, key: Key):
    self.program, self.setting = program, setting
    self.sources = responses.sources(program.rule, program.depth)
    self.letters = responses.letters(program.rule, program.depth)
    self.tangents = responses.tangents(program.rule, program.depth, program.phi)
    self.size, self.dtype = len(setting.root), setting.root.dtype
    self.scale = setting.gamma0 * setting.rate
    keys = jax.random.split(key, program.depth + 3)
    self.layers = [self._frozen(k) for k in keys[3:]]
    self.first = setting.root @ self._normal(keys[0], self.size)
    self.readout = self._normal(keys[1], 1)
    self.probes = copies.directions(keys[2], (program.steps, self.size), program.samples,
                                    self.dtype)

  def _frozen(self, key):
    rotations, gates, noise = jax.random.split(key, 3)
    u, r, zeta = (copies.rotation(one, self.program.samples, self.dtype)
                  for one in jax.random.split(rotations, 3))
    slopes = self.program.phi.derivative(self.setting.root @ self._normal(gates, self.size))
    return _Frozen(u, r, zeta, slopes, self._normal(noise, 1))

  def _normal(self, key, rows):
    return copies.normal(key, rows, self.program.samples, self.dtype)

  def run(self) -> March:
    """Marches, and gathers what was found."""
    program, kinds = self.program, 1 + len(self.tangents)
    empty = jnp.zeros((program.steps, self.size, kinds, program.samples), self.dtype)
    start = [_Layer(empty, empty, empty)] * program.depth
    pasts = [self._nothing()] * program.depth
    initial = jnp.zeros((program.steps, self.size), self.dtype)
    (layers, _, delta, _), (f, rows) = jax.lax.scan(
        self._step, (start, pasts, initial, empty[0, :, 0]), jnp.arange(program.steps))
    fields = [_Layer(*(a[:, :, 0] for a in layer)) for layer in layers]
    stack = lambda pick, other: jnp.stack([self._mean(pick(one), other(one)) for one in fields])
    phi, g, pseudo = (lambda one: one.phi), (lambda one: one.g), (lambda one: one.pseudo)
    return March(f, delta, stack(phi, phi), stack(g, g), stack(g, pseudo), stack(pseudo, pseudo),
                 {letter: jnp.moveaxis(row, 0, 1) for letter, row in rows.items()})

  def _step(self, carry, t):
    """All layers at time t: h from the input up, then z from the readout down."""
    layers, pasts, delta, initial = carry
    layers, above, self.pasts = list(layers), None, list(pasts)
    ups, rows = [], {letter: [] for letter in self.letters}
    for number in range(self.program.depth):
      below = (layers[number - 1], ups[-1][0]) if number else None
      phi, first, second = self._up(number, below, layers[number], delta, t, rows)
      layers[number] = layers[number]._replace(phi=layers[number].phi.at[t].set(phi))
      ups.append((phi, first, second))
    for number in reversed(range(self.program.depth)):
      layer = layers[number]
      beyond = layers[number + 1] if above is not None else None
      z = self._down(number, layer, beyond, above, delta, t, rows)
      phi, first, second = ups[number]
      if above is None:
        product = z[:, 0] * phi[:, 0]
        initial = jnp.where(t == 0, product, initial)
        # Copy by copy: a small gamma_0 divides small differences.
        f = jnp.mean(product - initial, -1) / self.setting.gamma0
        delta = delta.at[t].set(self._errors(f))
      g = self._signal(z, first, second)
      pseudo = self._pseudo(number, g, ups[number], layer, above, delta[t], t, rows)
      layers[number] = layer._replace(g=layer.g.at[t].set(g), pseudo=layer.pseudo.at[t].set(pseudo))
      above = g, pseudo
    # What comes from above was found from the last layer down.
    stacked = {letter: jnp.stack(row[::-1] if letter in 'bd' else row)
               for letter, row in rows.items()}
    return (layers, self.pasts, delta, initial), (f, stacked)

  def _up(self, number, below, layer, delta, t, rows):
    """phi(h), phi'(h) and phi''(h) dh of one layer at time t; phi with its tangents."""
    earlier = jnp.arange(self.program.steps) < t
    if below is None:
      u = self.first
      kernel = jnp.broadcast_to((self.setting.root @ self.setting.root.T)[:, None],
                                (self.size, self.program.steps, self.size))
      a = c = None
    else:
      past, phi = below
      u = self.layers[number].u(phi[:, 0])
      kernel = self._mean(phi[:, 0], past.phi[:, :, 0])
      a = self._response('a', 'r', number - 1, phi, earlier, rows)
      c = self._response('c', 'v', number - 1, phi, earlier, rows, self.setting.rho)
    weights = self.scale * kernel * self._trained(delta, earlier)[None]
    weights = weights if c is None else weights + c
    h = self._base(number, u, 'u', t) + self._sum(weights, layer.pseudo)
    return self._activated(number, h if a is None else h + self._sum(a, layer.g))

  def _down(self, number, layer, beyond, above, delta, t, rows):
    """z of one layer at time t, with its tangents; its phi is already written."""
    steps = jnp.arange(self.program.steps)
    if above is None:
      r = jnp.broadcast_to(self.readout, (self.size, self.program.samples))
      weights = jnp.broadcast_to(self.scale * self._trained(delta, steps < t)[None],
                                 (self.size, self.program.steps, self.size))
    else:
      g, _ = above
      r = self.layers[number].r(g[:, 0])
      kernel = self._mean(g[:, 0], beyond.pseudo[:, :, 0])
      weights = self.scale * kernel * self._trained(delta, steps < t)[None]
      weights = weights + self._response('b', 'u', number + 1, g, steps <= t, rows)
    return self._base(number, r, 'r', t) + self._sum(weights, layer.phi)

  def _signal(self, z, first, second):
    """g = phi'(h) z, with its tangents."""
    return first[:, None] * z + second * z[:, :1]

  def _pseudo(self, number, g, up, layer, above, delta, t, rows):
    """The rule's signal, with its tangents."""
    rule, (phi, first, second), rho = self.program.rule, up, self.setting.rho
    if rule in ('bp', 'gln'):
      return g
    if rule == 'hebb':
      return delta[:, None, None] * phi
    noise = self.layers[number].noise
    if rule == 'dfa':
      return self._signal(self._base(number, noise, '', t), first, second)
    if above is None:
      v, zeta = self.readout, noise
    else:
      v, zeta = self.layers[number].r(above[1][:, 0]), self.layers[number].zeta(above[1][:, 0])
    z = self._base(number, rho * v + jnp.sqrt(1 - rho**2) * zeta, 'v', t)
    if above is not None:
      known = jnp.arange(self.program.steps) <= t
      d = self._response('d', 'u', number + 1, above[1], known, rows, rho)
      z = z + self._sum(d, layer.phi)
    return self._signal(z, first, second)

  def _activated(self, number, h):
    """phi(h) with its tangents [P, K, S], phi'(h) [P, S] and phi''(h) dh [P, K, S], no dh of h."""
    field, moved = h[:, 0], h.at[:, 0].set(0)
    if self.program.rule == 'gln':
      gates = self.layers[number].gates
      return gates[:, None] * h, gates, jnp.zeros_like(h)
    phi = self.program.phi
    first, second = phi.derivative(field), phi.second(field)
    values = first[:, None] * moved
    return values.at[:, 0].set(phi(field)), first, second[:, None] * moved

  def _response(self, letter, source, number, moved, mask, rows, scale=1.0):
    """scale <d field(t) / d source(s)> [P, T, P] of a field [P, K, S]; None: there is no such.

    `source` is one of the layer `number`: u, r, or v as what is fed back, whose share of v is rho.
    """
    if source not in self.sources:
      return None
    if self.tangents:
      row = self._mean(moved[:, 1 + self.tangents.index(source)], self.probes)
    else:
      past, known = self.pasts[number].fields[source], self.pasts[number].known
      found = responses.grown(known[letter], moved[:, 0], jnp.where(mask[:, None, None], past, 0))
      self.pasts[number] = self.pasts[number]._replace(known={**known, letter: found})
      row = found.row
    kept = mask if letter not in self.program.without else jnp.zeros_like(mask)
    row = jnp.where(kept[None, :, None], scale * row, 0)
    rows[letter].append(row)
    return row

  def _nothing(self) -> _Past:
    """Of a layer before the first time; there is nothing to keep where copies carry tangents."""
    if self.tangents:
      return _Past({}, {})
    program = self.program
    fields = jnp.zeros((program.steps, self.size, program.samples), self.dtype)
    none = responses.nothing(program.steps, self.size, program.samples, self.dtype)
    return _Past({one: fields for one in self.sources}, {one: none for one in self.letters})

  def _base(self, number, field, source, t):
    """A field [P, S] and its own tangents: the probes' at time t along `source`, 0 along others."""
    field = jnp.broadcast_to(field, (self.size, self.program.samples))
    fields = self.pasts[number].fields
    if source in fields:
      fields = {**fields, source: fields[source].at[t].set(field)}
      self.pasts[number] = self.pasts[number]._replace(fields=fields)
    here = lambda one: self.probes[t] if one == source else jnp.zeros_like(field)
    return jnp.stack([field, *map(here, self.tangents)], 1)

  def _sum(self, weights, past):
    """sum_{s, nu} weights(mu; s nu) past(s nu): [P, T, P], [T, P, K, S] -> [P, K, S]."""
    flat = weights.reshape(self.size, -1) @ past.reshape(-1, past.shape[-2] * past.shape[-1])
    return flat.reshape(self.size, *past.shape[-2:])

  def _mean(self, left, right):
    """Second moments over copies, [..., S], [..., S] -> [..., ...]."""
    return jnp.tensordot(left, right, (-1, -1)) / self.program.samples

  def _errors(self, f):
    """Delta = - dl / df of the samples that are trained on."""
    y, trained = self.setting.targets
    if self.program.loss == 'mse':
      return trained * (y - f)
    return jnp.where(trained > 0, -jax.vmap(jax.grad(self.program.loss))(f, y), 0)

  def _trained(self, delta, mask):
    return jnp.where(mask[:, None], delta, 0)
