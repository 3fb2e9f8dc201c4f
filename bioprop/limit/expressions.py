"""Elementwise functions as the primitives that compute them."""
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bioprop.jaxprs.layout import bind
from bioprop.typing import Array

ELEMENTWISE = frozenset('''
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg not or pow
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor'''.split())


@dataclasses.dataclass(frozen=True)
class Expression:
  """An elementwise function; equal ones have equal keys.

  Attributes:
    key: what it computes.
    eqn: the last equation, None of an argument.
    operands: expressions, and numbers.
    argument: its number, of an argument.
  """
  key: str
  eqn: Any = dataclasses.field(default=None, compare=False)
  operands: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  argument: int = -1

  @property
  def __name__(self) -> str:
    """For messages."""
    return getattr(getattr(self.eqn, 'primitive', None), 'name', str(self.eqn))

  def __call__(self, *arguments: Array) -> Array:
    known: dict[str, Array] = {}
    return self._value(arguments, known)

  def _value(self, arguments, known):
    if self.argument >= 0:
      return arguments[self.argument]
    if self.key not in known:
      operands = [one._value(arguments, known) if isinstance(one, Expression) else one
                  for one in self.operands]
      known[self.key] = _bound(self.eqn, operands, arguments[0])
    return known[self.key]

  def renamed(self, numbers: Mapping[int, int]) -> 'Expression':
    """With other numbers of its arguments."""
    if self.argument >= 0:
      return argument(numbers[self.argument])
    return applied(self.eqn, [one.renamed(numbers) if isinstance(one, Expression) else one
                              for one in self.operands])


def argument(number: int) -> Expression:
  """The argument of this number itself."""
  return Expression(f'#{number}', argument=number)


def applied(eqn, operands: Sequence[Any]) -> Expression:
  """An equation, on expressions and numbers; `eqn` may also be a word of `_bound`."""
  own = eqn if isinstance(eqn, str) else (
      f'{eqn.primitive.name}{sorted((k, str(v)) for k, v in eqn.params.items() if _counts(k))}')
  text = f'{own}({",".join(o.key if isinstance(o, Expression) else repr(o) for o in operands)})'
  key = text if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()
  return Expression(key, eqn, tuple(operands))


def _counts(name: str) -> bool:
  return name not in ('sharding', 'accuracy')


def _bound(eqn, operands, like):
  if eqn == 'plus':
    return sum(operands[1:], start=operands[0])
  if eqn == 'scale':
    return operands[0] * jnp.asarray(operands[1], like.dtype)
  if eqn == 'times':
    return operands[0] * operands[1]
  if eqn == 'step':
    return (operands[0] > 0).astype(like.dtype)
  name, wanted = eqn.primitive.name, eqn.params.get('new_dtype', like.dtype)
  if name in ('convert_element_type', 'reduce_precision') and jnp.issubdtype(wanted, jnp.floating):
    return operands[0].astype(like.dtype)  # Kernels are those of exact numbers.
  arrays = [one for one in operands if hasattr(one, 'shape') and one.shape]
  shape = arrays[0].shape if arrays else like.shape
  return bind(eqn, [_constant(one, shape, like.dtype) for one in operands])[0]


def _constant(one, shape, dtype):
  if hasattr(one, 'shape') and one.shape == shape:
    return one
  own = np.asarray(one)
  return jnp.full(shape, own, dtype if np.issubdtype(own.dtype, np.floating) else own.dtype)
