"""The one `custom_vjp` of the library: an op, its rule, and the port that brings the error.

An *error port* carries the error to an op with the right types: the op also returns a port, a zero
array shaped like the network's output. All ports are added up; the output's tap returns the output
unchanged, and on the way back hands the sum, and so every port, the cotangent that arrived there.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bioprop.errors import RuleContractError
from bioprop.rules.base import Op, Rule
from bioprop.typing import Array, Params, PyTree


def assign(
    rule: Rule, op: Op, params: Params, x: Array, feedback: PyTree,
    error: jax.ShapeDtypeStruct | None = None, rewrite: Callable[..., Callable] = lambda f: f,
) -> tuple[Array, Array | None]:
  """Runs an op forward as it is, and backward by a rule.

  Args:
    rule: how credit is assigned.
    op: the op.
    params: its parameters.
    x: its input.
    feedback: the rule's feedback for this op.
    error: shape and dtype of the network's output, None if the rule does not read the error.
    rewrite: maps what is run, forward and backward, to a function with the same values.

  Returns:
    The op's output y, and the port to be handed to `tap`, zeros shaped like the error; or None.

  Raises:
    RuleContractError: on the backward pass, if the rule's answer has a wrong shape or dtype.
  """

  @jax.custom_vjp
  def call(params, x, feedback):
    del feedback
    y = rewrite(op)(params, x)
    return y, None if error is None else _zeros(error, y)

  def forward(params, x, feedback):
    return call(params, x, feedback), (params, x, feedback)

  def backward(residuals, cotangents):
    params, x, feedback = residuals
    g, e = cotangents
    credit = rewrite(functools.partial(rule.backward, op))(params, x, feedback, g, e)
    _check(rule, 'params', credit.params, params)
    sent = credit.x
    if sent is not None:
      _check(rule, 'x', sent, x)
    elif rule.sends and jnp.issubdtype(x.dtype, jnp.inexact):
      # JAX transposes a scan wrongly to which a symbolic zero comes back.
      sent = jnp.zeros_like(x)
    return credit.params, sent, credit.feedback

  call.defvjp(forward, backward)
  x = x if rule.sends else jax.lax.stop_gradient(x)
  return call(params, x, feedback)


def tap(out: Array, port: Array) -> Array:
  """Returns the network's output `out`; backward, hands its cotangent to the port too.

  Args:
    out: the network's output, [n, ...].
    port: the sum of the ops' ports, shaped like `out`.
  """

  @jax.custom_vjp
  def identity(out, port):
    del port
    return out

  identity.defvjp(lambda out, port: (identity(out, port), None), lambda _, e: (e, e))
  return identity(out, port)


def _zeros(error: jax.ShapeDtypeStruct, y: Array) -> Array:
  """Zeros that a vmap batches wherever it batches y: of shared ones it would add up the errors."""
  zero = jnp.zeros((), error.dtype)
  if y.size:
    first = jax.lax.stop_gradient(y).reshape(-1)[0]
    zero = jax.lax.select(first == first, zero, zero)
  return jax.lax.broadcast(zero, error.shape)


def _check(rule: Rule, what: str, got: PyTree, like: PyTree) -> None:
  describe = lambda tree: jax.tree.map(lambda a: f'{a.dtype}{list(a.shape)}', tree)
  if describe(got) != describe(like):
    raise RuleContractError(
        f'{type(rule).__name__}.backward returned a pseudogradient for {what} of type '
        f'{describe(got)}, but {what} is {describe(like)}. JAX needs the same structure, shapes '
        f'and dtypes; cast with .astype({what}.dtype) in {type(rule).__name__}.backward.')
