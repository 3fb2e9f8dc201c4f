"""Types that several packages name.

Shapes stand in the notation of jaxtyping, Float[Array, 'n m']. Its names are what they are to every
type checker, `typing.Annotated`, without the package: those who have none keep our types.
"""
from collections.abc import Callable, Mapping
from typing import Annotated as Complex
from typing import Annotated as Float
from typing import Annotated as Int
from typing import Any, TypeVar

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = Mapping[str, Any]  # One layer's parameters by name: {'kernel': ..., 'bias': ...}.
Function = TypeVar('Function', bound=Callable[..., Any])


def jitted(function: Function) -> Function:
  """`jax.jit`, which keeps the types of a public function for those who check theirs."""
  return jax.jit(function)


__all__ = ['Array', 'Complex', 'Float', 'Function', 'Int', 'Key', 'Params', 'PyTree', 'jitted']
