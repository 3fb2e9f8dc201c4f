"""The one `custom_vjp` of the library: a layer's op, its rule, and the port that brings the error.

An *error port* carries the error to an op with the right types: the op also returns a port, a zero
array shaped like the network's output. The output tap returns the network's output unchanged, and
on the way back hands every port the cotangent that arrived there.
"""
import jax
import jax.numpy as jnp

from bioprop.errors import RuleContractError
from bioprop.rules.base import Op, Rule
from bioprop.typing import Array, Params, PyTree


def assign(
    rule: Rule, op: Op, params: Params, x: Array, feedback: PyTree, port: Array | None
) -> tuple[Array, Array | None]:
  """Runs an op forward as it is, and backward by a rule.

  Args:
    rule: how credit is assigned.
    op: the layer.
    params: its parameters.
    x: its input.
    feedback: the rule's feedback for this layer.
    port: zeros shaped like the network's output, or None if the rule does not read the error.

  Returns:
    The op's output y, and the port to be handed to `tap`.

  Raises:
    RuleContractError: on the backward pass, if the rule's answer has a wrong shape or dtype.
  """

  @jax.custom_vjp
  def call(params, x, feedback, port):
    del feedback
    return op(params, x), port

  def forward(params, x, feedback, port):
    return call(params, x, feedback, port), (params, x, feedback)

  def backward(residuals, cotangents):
    params, x, feedback = residuals
    g, e = cotangents
    credit = rule.backward(op, params, x, feedback, g, e)
    _check(rule, 'params', credit.params, params)
    sent = credit.x
    if sent is not None:
      _check(rule, 'x', sent, x)
    elif rule.sends and jnp.issubdtype(x.dtype, jnp.inexact):
      # JAX transposes a scan wrongly to which a symbolic zero comes back.
      sent = jnp.zeros_like(x)
    return credit.params, sent, credit.feedback, None

  call.defvjp(forward, backward)
  x = x if rule.sends else jax.lax.stop_gradient(x)
  return call(params, x, feedback, port)


def tap(out: Array, ports: PyTree) -> Array:
  """Returns the network's output `out`; backward, hands its cotangent to every port.

  Args:
    out: the network's output, [n, ...].
    ports: arrays shaped like `out`, or with more axes in front (one per step of an `nn.scan`).
  """

  @jax.custom_vjp
  def identity(out, ports):
    del ports
    return out

  shapes = jax.tree.map(jnp.shape, ports)

  def backward(_, e):
    return e, jax.tree.map(
        lambda shape: jax.lax.broadcast_in_dim(
            e, shape, tuple(range(len(shape) - e.ndim, len(shape)))),
        shapes, is_leaf=lambda node: isinstance(node, tuple))

  identity.defvjp(lambda out, ports: (identity(out, ports), None), backward)
  return identity(out, ports)


def _check(rule: Rule, what: str, got: PyTree, like: PyTree) -> None:
  describe = lambda tree: jax.tree.map(lambda a: f'{a.dtype}{list(a.shape)}', tree)
  if describe(got) != describe(like):
    raise RuleContractError(
        f'{type(rule).__name__}.backward returned a pseudogradient for {what} of type '
        f'{describe(got)}, but {what} is {describe(like)}. JAX needs the same structure, shapes '
        f'and dtypes; cast with .astype({what}.dtype) in {type(rule).__name__}.backward.')
