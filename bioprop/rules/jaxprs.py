"""What call-like equations of a jaxpr hold, and how an equation is run."""
from collections.abc import Iterator, Sequence

from jax.extend import core

from bioprop.typing import Array

# Primitives that only call their body, by name; those that call it again in the backward pass.
JITS = ('jit', 'pjit', 'closed_call', 'core_call')
REMATS = ('remat', 'remat2', 'checkpoint')
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # Where call-like primitives keep their body.


def body_of(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The jaxpr that an equation calls (jit, remat, custom derivatives), None if it calls none."""
  return next((closed for key in _CALLS for closed in _closed(eqn.params.get(key))), None)


def bodies_of(eqn: core.JaxprEqn) -> list[core.ClosedJaxpr]:
  """Every jaxpr that an equation holds: what it calls, loops' bodies, branches."""
  return [closed for value in eqn.params.values()
          for part in (value if isinstance(value, tuple | list) else (value,))
          for closed in _closed(part)]


def bind(eqn: core.JaxprEqn, arrays: Sequence[Array]) -> list[Array]:
  """Runs an equation on arrays; returns its outputs."""
  outs = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))
  return list(outs) if eqn.primitive.multiple_results else [outs]


def _closed(value) -> Iterator[core.ClosedJaxpr]:
  if isinstance(value, core.ClosedJaxpr):
    yield value
  elif isinstance(value, core.Jaxpr):
    yield core.ClosedJaxpr(value, ())
