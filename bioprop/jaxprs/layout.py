"""How JAX lays out a jaxpr, for every version that is supported: all that we know of it is here."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

try:
  from jax.extend.core import get_opaque_trace_state as trace_state
except ImportError:  # Until jax 0.9.
  from jax.core import get_opaque_trace_state as trace_state  # noqa: F401

from bioprop.typing import Array

# Primitives by name: those that only call their body, and those that call it again when
# gradients are taken.
CALLS = ('jit', 'pjit', 'closed_call', 'core_call')
REMATS = ('remat', 'remat2', 'checkpoint')
_BODIES = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # Where call-like primitives keep their body.


class Body(NamedTuple):
  """A jaxpr, and the values of the constants that it captured."""
  jaxpr: core.Jaxpr
  consts: Sequence[Any]


class Scan(NamedTuple):
  """A scan: its body's inputs are constants, what is carried, and slices, in this order."""
  body: Body
  consts: int
  carried: int
  length: int
  options: dict[str, Any]  # Of `jax.lax.scan`.


def body_of(eqn: core.JaxprEqn) -> Body | None:
  """What an equation calls (jit, remat, a derivative of one's own), None if it calls nothing."""
  return next((body for key in _BODIES for body in _bodies(eqn.params.get(key))), None)


def bodies_of(eqn: core.JaxprEqn) -> list[Body]:
  """Every jaxpr that an equation holds: what it calls, loops' bodies, branches."""
  return [body for value in eqn.params.values()
          for part in (value if isinstance(value, tuple | list) else (value,))
          for body in _bodies(part)]


def scan_of(eqn: core.JaxprEqn) -> Scan:
  """The parts of a scan."""
  params = eqn.params
  if 'ft_in' in params:  # From jax 0.11.
    consts, carried, _ = (len(list(part)) for part in params['ft_in'].unpack())
  else:
    consts, carried = params['num_consts'], params['num_carry']
  options = {'reverse': params['reverse'], 'unroll': params['unroll']}
  if '_split_transpose' in params:
    options['_split_transpose'] = params['_split_transpose']
  return Scan(body_of(eqn), consts, carried, params['length'], options)


def branches_of(eqn: core.JaxprEqn) -> list[Body]:
  """The branches of a cond or switch."""
  return [body for branch in eqn.params['branches'] for body in _bodies(branch)]


def remat_options(eqn: core.JaxprEqn) -> dict[str, Any]:
  """The options of `jax.checkpoint`."""
  return {'prevent_cse': eqn.params['prevent_cse'], 'policy': eqn.params['policy']}


def bind(eqn: core.JaxprEqn, arrays: Sequence[Array]) -> list[Array]:
  """Runs an equation on arrays; returns its outputs."""
  params = eqn.primitive.get_bind_params(eqn.params)
  functions, params = params if isinstance(params, tuple) else ((), params)  # Until jax 0.9.
  with eqn.ctx.manager:
    outs = eqn.primitive.bind(*functions, *arrays, **params)
  return list(outs) if eqn.primitive.multiple_results else [outs]


def constant(atom: core.Literal) -> Any:
  """The value of a literal."""
  return atom.val


def _bodies(value: Any) -> list[Body]:
  if isinstance(value, core.ClosedJaxpr):  # What `core.Jaxpr` also is, from jax 0.11.
    return [Body(value.jaxpr, value.consts)]
  return [Body(value, ())] if isinstance(value, core.Jaxpr) else []
