"""A model, plain or plugged, as pure functions of its parameters by path."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bioprop.errors import SampleError, refusing_samples
from bioprop.fronts.choice import choose
from bioprop.fronts.function import Call, Plug, Returned
from bioprop.network.layered import Layered
from bioprop.network.store import Keys, Store
from bioprop.rules import AnyRule
from bioprop.typing import Array, Key, PyTree

PLAIN = choose('bp')


class Values(NamedTuple):
  """What a model computes with, beside its inputs: arrays or their shapes.

  Attributes:
    params: the parameters of the plain model, by path.
    held: what takes no gradient, such as running means.
    stored: the rule's feedback, by the keys that lead to it.
    key: what rules draw from at each call; None if there is none.
  """
  params: Mapping[str, Array]
  held: PyTree
  stored: Store
  key: Key | None


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and its rule.

  Attributes:
    plug: the rule, backprop if there is none, and which output is the model's.
    shapes: of its values, as its own init makes them.
    keys: the keys that lead to each parameter, by path.
    split: maps the model's variables to their values; raises MeasureError if they are another's.
    call: maps values and inputs to the call of the plain model, for `plug`.
  """
  plug: Plug
  shapes: Values
  keys: Mapping[str, Keys]
  split: Callable[[Any], Values]
  call: Callable[[Values, tuple[Any, ...]], Call]

  @property
  def rules(self) -> tuple[AnyRule, ...]:
    """All rules that were chosen."""
    return tuple(rule for _, rule in self.plug.choice.rows)

  def named(self) -> str:
    """The rules by their classes' names, for messages."""
    return ', '.join(sorted({type(rule).__name__ for rule in self.rules}))

  def seen(self, values: Values, sample: tuple[Any, ...],
           returned: Returned | None = None) -> Layered:
    """The model as it is seen on a sample: by its rules, or under rules of the whole network plain.

    Args:
      values, sample: arrays or shapes; nothing is computed.
      returned: told of what the model returns.

    Raises:
      PatternError: if a weight has no rule.
      UnsupportedLayerError: if a rule cannot act where a parameter is used.
      SampleError: if the model cannot be called on the sample.
    """
    plug = self.plug if self.plug.choice.network is None else Plug(PLAIN, self.plug.output)
    call = self.call(values, sample)
    with refusing_samples(call.name, sample):
      return plug.seen(call, returned)

  def run(self, layered: Layered, values: Values, sample: tuple[Any, ...],
          taps: Mapping[int, Array]) -> tuple[list[Array], dict[int, Array]]:
    """The arrays that it returns, and the inputs of the ops that have taps; see `Layered.run`.

    Args:
      layered: what `seen` gave, or `plain` of it.
      values, sample: shaped as what it was seen on.
      taps: what is added to the outputs of ops, by number.
    """
    call = self.call(values, sample)
    weights, direct = self.plug.unpacked(layered, call, values.stored)
    direct = _as_made(direct, layered.made(call.params)[1])
    (out, _), inputs = layered.run(
        call.params, call.held, call.inputs, weights=weights, direct=direct, key=values.key,
        taps=taps)
    return out, inputs

  def act(self, values: Values, sample: tuple[Any, ...]) -> PyTree:
    """What it returns under its rule, of whatever kind."""
    return self.plug.run(self.call(values, sample), values.stored, values.key)[0]

  def initial(self, values: Values) -> Values:
    """The values with the initial parameters, under a rule that keeps them."""
    return values._replace(params={
        path: values.stored['initial', *self.keys[path]] for path in values.params})


def acting(model: Model) -> Model:
  """A plain model whose forward pass is that of another under its rule, which stays frozen."""

  def call(values, sample):
    own = model.call(values, sample)

    def function(params, held, inputs):
      held, stored = held
      ran = dataclasses.replace(own, params=params, held=held, inputs=inputs)
      return model.plug.run(ran, stored, None)

    return dataclasses.replace(own, function=function, held=(own.held, values.stored))

  return dataclasses.replace(model, plug=Plug(PLAIN, model.plug.output), call=call)


def _as_made(direct: PyTree, made: PyTree) -> PyTree:
  """Feedback of the dtypes in which it is made, whatever else is cast to."""
  one = lambda value, like: jax.tree.map(lambda a, s: jnp.asarray(a, s.dtype), value, like)
  return {home: {name: one(value, made[home][name]) for name, value in own.items()
                 if name in made.get(home, {})} for home, own in direct.items()}


def plain(layered: Layered) -> Layered:
  """The same under backprop."""
  return dataclasses.replace(layered, rule_for=PLAIN.rule_for)


def shapes_of(tree: PyTree) -> PyTree:
  """Shapes and dtypes of arrays."""
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def batch_of(n: int, sample: PyTree) -> PyTree:
  """Shapes of n samples like these.

  Raises:
    SampleError: if a leaf is no array.
  """
  others = [leaf for leaf in jax.tree.leaves(sample) if not hasattr(leaf, 'shape')]
  if others:
    raise SampleError(f'the sample has {others[0]!r} in it, and takes arrays [n, ...] or their '
                      f'jax.ShapeDtypeStructs alone. Pass options by keyword, train=False, and '
                      f'numbers as arrays.')
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      (n, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)), sample)


def cast(tree: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
  """Arrays, or their shapes, in another floating dtype; whole numbers stay. None: as is."""
  if dtype is None:
    return tree
  floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype) if isinstance(
      leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf, dtype)
  return jax.tree.map(lambda leaf: one(leaf) if floating(leaf) else leaf, tree)
