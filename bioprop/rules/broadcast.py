"""How the error at the network's output lines up with a layer's input."""
import jax.numpy as jnp

from bioprop.errors import ErrorShapeError


def shared_axes(x: tuple[int, ...], error: tuple[int, ...], path: str = '') -> int:
  """The number of leading axes that an error [n, ...] and a layer's input x share.

  All axes of the error but the last, where x has them too (a batch of sequences with one error per
  position); otherwise 1, the batch. A batch that the model has merged with other axes
  (x of [n * k, ...]) counts as shared.

  Args:
    x: shape of the layer's input.
    error: shape of the error.
    path: the layer's path, for the message.

  Raises:
    ErrorShapeError: if x has no batch axis that matches the error's, or there are no samples.
  """
  if 0 in x or 0 in error:
    raise ErrorShapeError(
        f'the layer {path!r} has an input of shape {x}, and the error at the network\'s output has '
        f'shape {error}: of nothing there is no error to broadcast. Leave empty batches out: '
        f'batches = [x for x in batches if len(x)].')
  positions = len(error) - 1
  if positions >= 1 and len(x) > positions and x[:positions] == error[:positions]:
    return positions
  if len(x) < 2 or x[0] % error[0]:
    raise ErrorShapeError(
        f'the layer {path!r} has an input of shape {x}, and the error at the network\'s output '
        f'has shape {error}: the input\'s first axis is not the batch (nor a multiple of it), so '
        f'a rule that broadcasts the error cannot tell which sample is which. Move the batch to '
        f'the front of the layer\'s input, keep the layer out of a vmap over samples, or give it a '
        f'rule that needs no broadcast, in place of the rule: {{{path!r}: \'fa\', \'*\': ...}}.')
  return 1


def at_least_float32(dtype) -> jnp.dtype:
  """`dtype`, or float32 where it is narrower (explicit, so that strict promotion allows it)."""
  return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
