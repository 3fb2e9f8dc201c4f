"""The angle between forward and feedback weights.

Under feedback alignment forward weights come to resemble the feedback (Lillicrap et al. 2016, arXiv
1411.0247); Kolen-Pollack learning and the weight mirror move the feedback instead (Akrout et al.
2019, arXiv 1904.05391). Direct feedback aligns with the product of all weights above it (Launay,
Poli & Krzakala 2019, arXiv 1906.04554; Refinetti et al. 2021, arXiv 2011.12428).
"""
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bioprop.errors import MeasureError
from bioprop.typing import Array, Float


def weight_alignment(weights: Mapping[str, Array],
                     feedback: Mapping[str, Array]) -> dict[str, Float[Array, '']]:
  """Computes the cosine of W and B, taken as vectors.

  Args:
    weights: by path.
    feedback: by path, shaped like the weights: `feedback_weights(model, variables, x).sent`. Of a
      layer whose input no parameter made, it sends to nothing, and there is no angle.

  Returns:
    The cosine [] by path, of the weights that have feedback; arccos of it is the angle in radians.
    NaN where one of the two is 0.

  Raises:
    MeasureError: if feedback is not shaped like its weights.
  """
  for path, b in feedback.items():
    if path not in weights or weights[path].shape != b.shape:
      there = weights[path].shape if path in weights else 'not there'
      raise MeasureError(
          f'the feedback of {path!r} has shape {b.shape}, and the weights are {there}; it is to be '
          f'shaped like them. Of direct feedback, [outputs, features], see direct_alignment.')
  return {path: _cosine(weights[path], b) for path, b in feedback.items()}


def direct_alignment(above: Sequence[Float[Array, 'in out']],
                     feedback: Float[Array, 'outputs in_of_first']) -> Float[Array, '']:
  """Computes the cosine of direct feedback and the product of the weights above it.

  Args:
    above: the weights [in, out] that lead from where the feedback arrives to the output, W_l, ...,
      W_L, all dense.
    feedback: B [outputs, in of W_l], as `variables['feedback']` has it under the name 'error'.

  Returns:
    The cosine [] of B^T with W_l ... W_L: what the nonlinearities let through is left aside.

  Raises:
    MeasureError: if the shapes do not lead from one to the next.
  """
  shapes = [w.shape for w in above]
  wanted = (shapes[0][0], shapes[-1][-1]) if shapes and min(map(len, shapes)) > 1 else None
  if any(len(shape) != 2 for shape in shapes) or any(
      one[1] != after[0] for one, after in zip(shapes, shapes[1:])) or (
          feedback.T.shape != wanted):
    raise MeasureError(
        f'weights of shapes {shapes} do not lead from the {feedback.shape[-1]} features where '
        f'direct feedback of shape {feedback.shape} arrives to the {feedback.shape[0]} outputs. '
        f'Give the dense layers [in, out] from that input up to the readout.')
  with jax.default_matmul_precision('highest'):
    return _cosine(functools.reduce(jnp.matmul, above), feedback.T)


@jax.default_matmul_precision('highest')
def _cosine(w: Array, b: Array) -> Array:
  return jnp.vdot(w, b) / jnp.sqrt(jnp.vdot(w, w) * jnp.vdot(b, b))
