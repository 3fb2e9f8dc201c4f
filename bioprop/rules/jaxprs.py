"""What call-like equations of a jaxpr hold."""
from jax.extend import core

_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # Where call-like primitives keep their body.


def body_of(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The jaxpr that an equation calls (jit, remat, custom derivatives), None if it calls none."""
  for key in _CALLS:
    body = eqn.params.get(key)
    if isinstance(body, core.ClosedJaxpr):
      return body
    if isinstance(body, core.Jaxpr):
      return core.ClosedJaxpr(body, ())
  return None
