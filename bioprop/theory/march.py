r"""Dynamical mean-field theory of wide networks that learn features, under any rule.

At infinite width the neurons of a layer are independent, each a copy of one random process
(Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 5 and table 1). Of C outputs, weights and
biases as in bioprop/theory/lazy.py, with g_c = phi'(h) z_c the true and g~_c the rule's signal of
output c, and e = SUM_c Delta_c g~_c what moves weights, in steps of size eta,

  h^{l+1}(t) = u(t) + sum_{s<t} [s_l^2 (a^l + c^l) + gamma_0 eta (s_l^2 Phi^l + r_l)] e^{l+1}(s)
  z^l_c(t) = r_c(t) + s_l^2 sum_{s<=t} [b^l_c + gamma_0 eta 1[s<t] E^{l+1}_c] phi(h^l(s))

where all kernels have the arguments (mu t; nu s), sums are also over the samples nu, and

  Phi^l = <phi phi> ,  E^l_c = <g_c e> ,  G^l_cc' = <g_c g_c'> ,  G~^l_cc' = <g_c g~_c'> ,
  G~~^l_cc' = <g~_c g~_c'> ,  u^{l+1} ~ GP(0, s_l^2 Phi^l + beta_l) ,  r^l ~ GP(0, s_l^2 G^{l+1}) ,
  a^l = <d phi(h^l) / d r^l> ,  b^l_c = <d g_c^{l+1} / d u^{l+1}> ,  c^l = <d phi(h^l) / d v^l> :

  rule    g~_c
  bp      phi'(h) z_c
  fa      phi'(h) z~_c,  z~_c = rho v_c + sqrt(1 - rho^2) zeta_c + s_l^2 sum_{s<=t} d^l_c phi(h(s)),
          d^l_c = rho <d g~_c^{l+1} / d u^{l+1}>, v and zeta ~ GP(0, s_l^2 G~~^{l+1}),
          <r v> = s_l^2 G~^{l+1}
  dfa     phi'(h) z~_c,  z~_c ~ N(0, 1), static
  gln     phi'(m) z_c,   and phi(h) becomes phi'(m) h, m ~ N(0, K^x)
  hebb    Delta_c phi(h)

Outputs act on features through e alone. So r and v, of which h knows nothing but what is in e, are
there r(s) = SUM_c Delta_c(s) r_c(s), and the past that has to be kept is that of phi(h) and e,
whatever C is: kernels and responses are [P C; T P], and not [P C; T P C].

Derivatives of averages are of steps, not of continuous time: a = gamma_0 A eta and so on in the
paper's letters; the term s = t is in b and d alone. Gradient descent with the learning rate eta
gamma_0^2 N on SUM l(f, y), width N, arrives at exactly these sums: the steps are not an
approximation of the flow, they are the network's own. So do its batches, which leave samples out of
e, and its momentum (bioprop/theory/learned.py).

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
  Start             the lazy limit says what K is there, and copies how far it goes from there: what
                    they are wrong by at the start is a control variate of K and of each step of
                    f. So is <r phi(u)>, which is 0, of f = <z phi(h)> / gamma_0.
  Ends              the input's kernel is static and the readout's signal is 1: what their weights
                    have learned is one sum, and one hidden layer needs no past at all.

What weights between hidden layers have learned is a sum over the past, which is kept (kept.py) or
summed (summed.py). Kept it costs O(samples C (T P)^2 depth) and takes memory O(samples T P depth +
(n P)^2 depth) where kernels are kept at n times; summed O(samples^2 T P C depth) and O(samples^2
depth); see `memory`.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.theory.ensemble import Ensemble
from bioprop.theory.kept import Kept
from bioprop.theory.learned import over_outputs, second_moments
from bioprop.theory.problem import March, Program, Setting, tangents
from bioprop.theory.state import Start, State, Up, begin
from bioprop.theory.summed import Summed
from bioprop.typing import Array, Key

RULES = ('bp', 'fa', 'dfa', 'hebb', 'gln')
LOSSES = {'cross_entropy': lambda f, y: -jnp.sum(y * jax.nn.log_softmax(f))}


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')
def march(program: Program, setting: Setting, key: Key) -> March:
  """Solves the equations, from one draw of the copies."""
  return _March(program, setting, key).run()


class _March:
  """The equations' state and steps; all methods are traced."""

  def __init__(self, program: Program, setting: Setting, key: Key):
    self.program, self.setting = program, setting
    self.random = Ensemble(program, setting, key)
    self.tangents = tangents(program)
    self.size, self.dtype = len(setting.root), setting.root.dtype
    self.shape = self.size, program.outputs or 1, program.samples
    self.kernel = setting.root @ setting.root.T
    self.scale = setting.gamma0 * setting.rate
    # Times that are not kept are written outside of what is kept, which drops them.
    slots = np.full(program.steps, len(program.kept))
    slots[list(program.kept)] = np.arange(len(program.kept))
    self.slots = jnp.asarray(slots)
    self.past = {'kept': Kept, 'summed': Summed}[program.past](
        program, setting, self.random, self.slots)

  def run(self) -> March:
    """Marches, and gathers what was found."""
    program = self.program
    pasts = [self.past.begin(at) for at in range(program.depth - 1)]
    state, (f, delta, entk) = jax.lax.scan(
        self._step, begin(program, self.size, self.dtype, pasts, self.setting.lazy is not None),
        jnp.arange(program.steps))
    signals = lambda left, right: jnp.stack(
        [over_outputs(one[left], one[right]) for one in state.seen])
    rows, missed = self.past.end(state.pasts)
    if program.outputs is None:
      f, delta = f[..., 0], delta[..., 0]
      # That to r is Delta times that to what moves weights.
      moved = (self.setting.counts * delta)[jnp.asarray(program.kept)]
      rows = {letter: row[:, :, :, 0] if letter in 'bd' else row * moved[None, None, None]
              for letter, row in rows.items()}
    return March(f, delta, entk, state.between,
                 jnp.stack([second_moments(one[0], one[0]) for one in state.seen]),
                 signals(1, 1), signals(1, 2), signals(2, 2), rows, missed)

  def _step(self, state: State, t: Array):
    """All layers at time t: h from the input up, then z from the readout down."""
    pasts, seen = list(state.pasts), list(state.seen)
    past, depth, ups = self.past, self.program.depth, []
    for number in range(depth):
      ups.append(self._up(state, pasts, number, ups, t))
      if number < depth - 1:
        pasts[number] = past.saw_phi(pasts[number], ups[number].phi, t)
    above, signals, slot = None, [], self.slots[t]
    for number in reversed(range(depth)):
      z, r = self._down(state, pasts, number, above, t)
      if above is None:
        # Copy by copy, as a small gamma_0 divides small differences. r knows nothing of u: their
        # mean is 0, and what it is in the copies, at the start all of f, is noise.
        f = jnp.mean(z[0] * ups[number].phi[0][:, None] - r * ups[number].still[:, None], -1)
        f = f / self.setting.gamma0
        f = f + (self.setting.rate * self.setting.bias_rates[-1] * state.offset.value)[None]
        if state.start is not None:
          f = f + self.setting.rate * state.start.missing.value
        errors = self._errors(f)
        moving = errors * self.setting.counts[t][:, None]
      g = _signal(z, ups[number])
      pseudo, v = self._pseudo(pasts, number, g, ups[number], above, errors, t)
      e = self._moving(number, ups[number], pseudo, moving, t)
      if number:
        pasts[number - 1] = past.saw_e(pasts[number - 1], e, t)
      if number < depth - 1:
        source, field = ('r', r) if v is None else ('v', v)
        pasts[number] = past.saw(pasts[number], source, jnp.sum(moving[..., None] * field, 1), t)
      above = g, pseudo
      signals.append((g[0], pseudo[0]))
      seen[number] = tuple(old.at[slot].set(one, mode='drop') for old, one in zip(
          seen[number], (ups[number].phi[0], g[0], pseudo[0])))
    entk, between, start, left = self._kernels(
        t, [up.phi[0] for up in ups], signals[::-1], state.between, state.start)
    if start is not None:
      start = self._missing(start, left, errors, moving)
    momentum = self.setting.momentum
    readout = jnp.einsum('nc,kns->kcs', moving, ups[-1].phi)
    return State(
        pasts, state.first.moved(e, momentum), state.readout.moved(readout, momentum),
        state.offset.moved(jnp.sum(moving, 0), momentum), start, seen,
        between), (f, errors, entk)

  def _up(self, state, pasts, number, ups, t) -> Up:
    """The activity of one layer at time t."""
    random, setting = self.random.layers[number], self.setting
    if number:
      phi = ups[-1].phi
      u = jnp.sqrt(setting.weights[number]) * random.u(phi[0]) + random.bias
      pasts[number - 1], learned = self.past.up(pasts[number - 1], number - 1, phi, t)
      pasts[number - 1] = self.past.saw(pasts[number - 1], 'u', u, t)
    else:
      u = self.random.first + random.bias
      kernel = setting.weights[0] * self.kernel + setting.bias_rates[0]
      learned = self.scale * jnp.einsum('mn,kns->kms', kernel, state.first.value)
    h = learned.at[0].add(u)
    if 'u' in self.tangents[number]:
      h = h.at[1 + self.tangents[number].index('u')].add(self.random.probes[t])
    return self._activated(number, h, u)

  def _down(self, state, pasts, number, above, t) -> tuple[Array, Array]:
    """z [K, P, C, S] of one layer at time t, and r."""
    weight = self.setting.weights[number + 1]
    if above is None:
      r = jnp.broadcast_to(self.random.readout[None], self.shape)
      value = weight * self.scale * state.readout.value
      learned = jnp.broadcast_to(value[:, None], (len(value), *self.shape))
    else:
      r = jnp.sqrt(weight) * self.random.layers[number].r(above[0][0])
      pasts[number], learned = self.past.down(pasts[number], number, above[0], t)
    return learned.at[0].add(r), r

  def _activated(self, number, h, u) -> Up:
    """The activity of pre-activations h [K, P, S] of a layer, and of u [P, S]."""
    field, moved = h[0], h[1:]
    if self.program.rule == 'gln':
      gates = self.random.layers[number].gates
      return Up(gates[None] * h, gates, jnp.zeros_like(moved), gates * u)
    phi = self.program.phi
    first, second = phi.derivative(field), phi.second(field)
    return Up(jnp.concatenate([phi(field)[None], first[None] * moved]), first,
              second[None] * moved, phi(u))

  def _pseudo(self, pasts, number, g, up, above, errors, t) -> tuple[Array, Array | None]:
    """The rule's signal [K, P, C, S] of one layer at time t, and v where it is fed back."""
    rule, rho, random = self.program.rule, self.setting.rho, self.random.layers[number]
    if rule in ('bp', 'gln'):
      return g, None
    if rule == 'hebb':
      return errors[None, ..., None] * up.phi[:, :, None], None
    static = lambda field: jnp.zeros_like(g).at[0].set(jnp.broadcast_to(field, self.shape))
    noise, root = random.noise[None], jnp.sqrt(self.setting.weights[number + 1])
    if rule == 'dfa':
      return _signal(static(noise), up), None
    if above is None:
      v = rho * self.random.readout[None] + jnp.sqrt(1 - rho**2) * root * noise
      return _signal(static(v), up), None
    fed = above[1]
    v = root * (rho * random.r(fed[0]) + jnp.sqrt(1 - rho**2) * random.zeta(fed[0]))
    pasts[number], answer = self.past.fed(pasts[number], number, fed, t)
    return _signal(static(v) + answer, up), v

  def _moving(self, number, up, pseudo, moving, t) -> Array:
    """e [K, P, S], with the tangents that begin here."""
    e = jnp.sum(moving[None, ..., None] * pseudo, 2)
    for at, source in enumerate(self.tangents[number]):
      if source != 'u':
        batch = (self.setting.counts[t] > 0)[:, None]
        e = e.at[1 + at].add(jnp.where(batch, up.first * self.random.probes[t], 0))
    return e

  def _kernels(self, t, phis, signals, between, start):
    """K at one time [P, P], the mean over outputs; of all pairs where these are kept; the start.

    And how much copies say now of what they said then: the coefficient of least squares of their
    shares in K's trace on those at the start, which is that of this control variate.
    """
    weight, rate = self.setting.weights, self.setting.bias_rates
    layers = [weight[at] * phi + rate[at] for at, phi in enumerate(
        (self.kernel, *(second_moments(phi, phi) for phi in phis)))]
    entk = layers[-1] + sum(over_outputs(g, pseudo) * layer
                            for (g, pseudo), layer in zip(signals, layers))
    own, slot = jnp.eye(self.shape[1], dtype=self.dtype)[None, None], self.slots[t]

    def pairs():
      total = layers[-1][..., None, None] * own
      for (g, pseudo), layer in zip(signals, layers):
        total = total + second_moments(g, pseudo).swapaxes(1, 2) * layer[..., None, None]
      return total

    asked = slot < len(between) if start is None else (slot < len(between)) | (t == 0)
    found = jax.lax.cond(asked, pairs, lambda: jnp.zeros(between.shape[1:], self.dtype))
    left = None
    if start is not None:
      hebb, (g, pseudo) = self.program.rule == 'hebb', signals[-1]
      shares = weight[-1] * jnp.sum(jnp.square(phis[-1]), 0) + (0 if hebb else jnp.sum(
          g * pseudo * jnp.diagonal(layers[-2])[:, None, None], (0, 1)) / self.shape[1])
      new = (layers[-1], layers[-1][..., None, None] * own) if hebb else (entk, found)
      new += jnp.stack(layers[:-3:-1]), (phis[-1][:, None], g, pseudo), shares - jnp.mean(shares)
      start = Start(*jax.tree.map(lambda old, new: jnp.where(t == 0, new, old), start[:-1], new),
                    start.missing)
      left = jnp.sum(start.shares * shares) / jnp.maximum(
          jnp.sum(jnp.square(start.shares)), jnp.finfo(self.dtype).tiny)
      # What is known of the start takes the place of what copies say: the error is in the change.
      lazy = self.setting.lazy.entk
      entk = entk + left * (lazy - start.entk)
      found = found + left * (lazy[..., None, None] * own - start.between)
    return entk, between.at[slot].set(found, mode='drop'), start, left

  def _missing(self, start, left, errors, moving):
    """What one step's outputs lack as copies are not quite as the start is known to be."""
    phi, g, pseudo = start.signals
    pseudo = errors[..., None] * phi if self.program.rule == 'hebb' else pseudo
    e = jnp.sum(moving[..., None] * pseudo, 1)
    found = start.kernels[0] @ moving + jnp.sum(
        second_moments(g, e) * start.kernels[1][:, None], -1)
    return start._replace(missing=start.missing.moved(
        left * (self.setting.lazy.top @ moving - found), self.setting.momentum))

  def _errors(self, f):
    """Delta = - dl / df [P, C] of the samples that are trained on."""
    y, trained = self.setting.targets, self.setting.trained[:, None]
    if self.program.loss == 'mse':
      return trained * (y - f)
    loss = LOSSES.get(self.program.loss, self.program.loss)
    if self.program.outputs is None:
      slopes = jax.vmap(jax.grad(loss))(f[:, 0], y[:, 0])[:, None]
    else:
      slopes = jax.vmap(jax.grad(loss))(f, y)
    return jnp.where(trained > 0, -slopes, 0)


def _signal(z, up) -> Array:
  """g = phi'(h) z [K, P, C, S], with its tangents."""
  g = up.first[None, :, None] * z
  return g.at[1:].add(up.bends[:, :, None] * z[:1])
