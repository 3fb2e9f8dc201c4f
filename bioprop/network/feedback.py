"""Makes feedback: shaped like parameters, beside them; shaped like activities, one for each op."""
import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.network.acting import Home
from bioprop.network.values import Network, SeenOp
from bioprop.rules import Op, Rule, Site
from bioprop.typing import Array, Key

# Maps a key to fresh draws of all parameters, by path.
Draw = Callable[[Key], Mapping[str, Array]]


def homes(network: Network) -> dict[int, Home]:
  """Where each op's feedback is kept that is shaped like activities, by the op's number.

  Uses of one weight whose inputs have the same features share it, as a layer's calls do; others of
  its first parameter are numbered.
  """
  found, known = {}, {}
  for op in network.ops:
    axis, shape = op.seen_x.axis, op.x_aval.shape
    features = shape if axis is None else shape[:axis] + shape[axis + 1:]
    own = known.setdefault(op.path, [])
    if not op.seen_x.live:  # Nothing is sent there.
      continue
    use = features, op.stack, op.paths
    if use not in own:
      own.append(use)
    found[op.number] = op.path, own.index(use)
  return found


class Names:
  """The keys of feedback that belongs to an op, beside its parameter.

  It is called as its rule calls it, 'error'; where a layer has several weights 'kernel_error', and
  of further inputs of other shapes 'error_1', 'error_2'.
  """

  def __init__(self, network: Network, keys: Mapping[str, tuple[str, ...]]):
    self._keys = keys
    taken = set(keys.values())
    weights = {op.path for op in network.ops}
    layers = [keys[path][:-1] for path in weights]
    self._alone = {path for path in weights if layers.count(keys[path][:-1]) == 1
                   and (*keys[path][:-1], 'error') not in taken}

  def _affixes(self, home: Home) -> tuple[str, str]:
    path, number = home
    before = '' if path in self._alone else f'{self._keys[path][-1]}_'
    return before, f'_{number}' if number else ''

  def __call__(self, home: Home, name: str) -> tuple[str, ...]:
    before, after = self._affixes(home)
    return (*self._keys[home[0]][:-1], f'{before}{name}{after}')

  def read(self, home: Home, leaf: str) -> str | None:
    """What a rule calls a leaf of the layer, None if it is another op's."""
    before, after = self._affixes(home)
    longer = (f'{keys[-1]}_' for keys in self._keys.values()  # Of 'w_2' is 'w_2_error', not of 'w'.
              if keys[:-1] == self._keys[home[0]][:-1] and len(keys[-1]) >= len(before) > 0)
    if not (leaf.startswith(before) and leaf.endswith(after)) or leaf.startswith(tuple(longer)):
      return None
    name = leaf[len(before):len(leaf) - len(after)]
    plain = not after and name.rpartition('_')[2].isdigit()
    return None if plain or not name else name


def init_feedback(network: Network, rule_of: Callable[[SeenOp], Rule], params: Mapping[str, Array],
                  draw: Draw, key: Key, error: jax.ShapeDtypeStruct | None, silent: Collection[int]
                  ) -> tuple[dict[str, Array], dict[Home, dict[str, Any]]]:
  """Makes the feedback of every op.

  Args:
    network: the network.
    rule_of: the rule of each op.
    params: its parameters as they are, W(0).
    draw: draws others like them.
    key: what all is drawn from.
    error: shape and dtype of the error, None if no rule reads it.
    silent: numbers of ops that send nothing through feedback.

  Returns:
    What is shaped like parameters, by path; and what is not, stacked as scans stack the layers.
  """
  weights: dict[str, Array] = {}
  direct: dict[Home, dict[str, Any]] = {}
  at, draws = homes(network), Draws(draw, key)
  for op in network.ops:
    rule = rule_of(op)
    if rule.exact or not rule.keeps_feedback or not op.seen_x.live or op.number in silent:
      continue
    error_seen = error if rule.reads_error else None
    x = front(op.x_aval, op.seen_x.axis if rule.reads_error else 0)
    for path in op.paths:
      if path not in weights:
        made = draws.make(rule, path, params, x, error_seen, alone=len(op.paths) == 1)
        weights.update((path, value) for value in made.values())
    home = at.get(op.number)
    if home is not None and home not in direct:
      own = _direct(rule, op, home, params, draws, x, error_seen)
      if own:
        direct[home] = own
  return weights, direct


def init_unseen(rules: Mapping[str, Rule], params: Mapping[str, Array], draw: Draw,
                key: Key) -> dict[str, Array]:
  """Feedback shaped like parameters for a network that was not seen, by path.

  Args:
    rules: the rule of each parameter that may be a weight.
    params, draw, key: as in `init_feedback`.
  """
  draws = Draws(draw, key)
  return {path: value for path, rule in rules.items() if not rule.exact and rule.keeps_feedback
          for value in draws.make(rule, path, params, None, None).values()}


def front(aval: jax.ShapeDtypeStruct, axis: int | None) -> jax.ShapeDtypeStruct:
  """The shape with an axis put first."""
  shape = list(aval.shape)
  if axis:
    shape.insert(0, shape.pop(axis))
  return jax.ShapeDtypeStruct(tuple(shape), aval.dtype)


class Draws:
  """Fresh draws of parameters; the model's init runs once for all of them."""

  def __init__(self, draw: Draw, key: Key):
    self._draw, self._key = draw, key
    self._shared: Mapping[str, Array] | None = None

  def key(self, name: str) -> Key:
    """The key of what has this name."""
    return jax.random.fold_in(self._key, zlib.crc32(name.encode()))

  def make(self, rule: Rule, path: str, params: Mapping[str, Array],
           x: jax.ShapeDtypeStruct | None, error: jax.ShapeDtypeStruct | None, *,
           alone: bool = True) -> dict[str, Any]:
    """What a rule makes for one parameter of an op in its shape, by its name; {} if nothing."""
    layer, _, name = path.rpartition('/')
    own = self.key(path)

    def redraw(key: Key) -> dict[str, Array]:
      if not alone and params[path].ndim < 2:
        return {name: params[path]}  # A factor of a weight, such as the scale of a normalised one.
      if key is not own:
        return {name: _not_constant(self._draw(key)[path], key)}
      if self._shared is None:
        self._shared = self._draw(self._key)
      return {name: _not_constant(self._shared[path], key)}

    like = jax.ShapeDtypeStruct(params[path].shape, params[path].dtype)
    if name not in _names(rule, path, like, x, error):
      return {}
    site = Site(layer or name, _bare(name), {name: params[path]}, redraw, x, error)
    return {name: rule.init_feedback(own, site)[name]}


def _direct(rule: Rule, op: SeenOp, home: Home, params, draws: Draws,
            x: jax.ShapeDtypeStruct, error) -> dict[str, Any]:
  """Feedback of one op that is not shaped like its weight; of a stack, one for each layer."""
  layer, _, name = op.path.rpartition('/')
  own = draws.key(f'{home[0]}:{home[1]}')

  bare = dataclasses.replace(_bare(name), features=op.features)

  def make(key: Key) -> dict[str, Any]:
    redraw = lambda key: {name: draws._draw(key)[op.path]}
    made = rule.init_feedback(key, Site(layer or name, bare, {name: params[op.path]}, redraw, x,
                                        error, op.w_aval)) or {}
    return {leaf: value for leaf, value in made.items() if leaf != name}

  for _ in op.stack:
    make = jax.vmap(make)
  return make(jax.random.split(own, op.stack) if op.stack else own)


@functools.lru_cache(maxsize=1024)  # Asked at every trace, and most of what `made` costs there.
def _names(rule: Rule, path: str, w: jax.ShapeDtypeStruct, x, error) -> frozenset[str]:
  """What a rule makes for an op with this parameter."""
  layer, _, name = path.rpartition('/')
  make = lambda key, w: rule.init_feedback(key, Site(
      layer or name, _bare(name), {name: w}, lambda _: {name: w}, x, error)) or {}
  return frozenset(jax.eval_shape(make, jax.random.key(0), w))


def _bare(name: str) -> Op:
  return Op(lambda params, x: x @ params[name], (name,))


def _not_constant(w: Array, key: Key) -> Array:
  """A LeCun-normal draw in place of a constant one: feedback of zeros would carry no error."""
  if not jnp.issubdtype(w.dtype, jnp.inexact):
    return w
  if not isinstance(w, jax.core.Tracer) and jnp.max(w) != jnp.min(w):
    return w  # As nearly always: a program that draws takes a while to compile.
  return _drawn_if_constant(w, key)


@jax.jit  # One program for each shape, as in `redrawn`.
def _drawn_if_constant(w: Array, key: Key) -> Array:
  fan_in = max(1, w.size // w.shape[-1]) if w.ndim else 1
  normal = jax.random.normal(jax.random.fold_in(key, 1), w.shape, w.dtype) / jnp.asarray(
      fan_in**0.5, w.dtype)
  return jnp.where(jnp.max(w) == jnp.min(w), normal, w)
