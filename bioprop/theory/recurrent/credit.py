"""How a rule sends errors back in time, as a few options that modes and networks share."""
import math
from typing import NamedTuple

import jax
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import checks
from bioprop.typing import Array

RULES = ('bptt', 'tbptt', 'rflo', 'eprop')
SYMMETRIC = 'symmetric'


class Credit(NamedTuple):
  """What stands for (W^s)^T A^T, which brings the error of the output to s steps before it.

  Attributes:
    rule: one of `RULES`.
    steps: terms s = 0, ..., steps - 1 are kept; infinite but under tbptt.
    feedback: what replaces A; None: A itself.
    leak: what replaces W under rflo.
  """
  rule: str
  steps: float
  feedback: Array | None
  leak: float


def checked(rule: str, steps: int | None, feedback: Array | str | None,
            leak: float | None) -> Credit:
  """The options of a rule.

  Raises:
    TheoryError: if there is no such rule, or an option is missing, out of range or another rule's.
  """
  checks.choice('rule', rule, RULES)
  for name, value, owners in (('steps', steps, ('tbptt',)), ('leak', leak, ('rflo',)),
                              ('feedback', feedback, ('rflo', 'eprop'))):
    if value is not None and rule not in owners:
      raise TheoryError(f'{name}={value!r} was given for {rule!r}: only {" and ".join(owners)} '
                        f'can have it. Leave {name} out, or say rule={owners[0]!r}.')
  if rule == 'tbptt':
    return Credit(rule, checks.whole('steps', steps, 1), None, 0.0)
  if rule == 'bptt':
    return Credit(rule, math.inf, None, 0.0)
  leak = 0.0 if leak is None else leak
  if not abs(checks.number_of(leak)) < 1:
    raise TheoryError(f'leak={leak!r} stands for W in the product of Jacobians, and a sum over all '
                      f'of the past is finite only if it is within (-1, 1). Say for instance '
                      f'leak=0.5, or leak=0.0 for no credit in time.')
  if feedback is None or (isinstance(feedback, str) and feedback != SYMMETRIC):
    raise TheoryError(f'{rule} was given feedback={feedback!r}, and theory must know what carries '
                      f'the error in place of the readout A. Give the numbers, or say '
                      f'feedback={SYMMETRIC!r} for A itself.')
  feedback = None if isinstance(feedback, str) else numbers('feedback', feedback)
  return Credit(rule, math.inf, feedback, float(leak))


def require_alike(**named: Array | None) -> None:
  """Raises TheoryError where arrays, or named tuples of them, do not broadcast with each other."""
  shapes = {name: [np.shape(one) for one in jax.tree.leaves(value)]
            for name, value in named.items()}
  try:
    np.broadcast_shapes(*(shape for several in shapes.values() for shape in several))
  except ValueError as error:
    told = ', '.join(f'{name} {" ".join(map(str, several))}' for name, several in shapes.items()
                     if several)
    raise TheoryError(f'these have shapes that do not match: {told}. Give one number for each '
                      f'mode in all of them, [modes], or one for all, a number.') from error


def numbers(name: str, value) -> Array:
  """A value as a floating array: JAX's as they are, all others of NumPy in float64.

  Raises:
    TheoryError: if it is none, or not finite; values that JAX traces pass.
  """
  if not isinstance(value, jax.Array):
    try:
      value = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
      raise TheoryError(f'{name} cannot be read as numbers ({error}). Give a number, or an array '
                        f'of NumPy or JAX.') from error
  if not isinstance(value, jax.core.Tracer) and not np.isfinite(np.asarray(value)).all():
    raise TheoryError(f'{name} has entries that are infinite or NaN, and so would all that follows '
                      f'be. Give finite ones.')
  return value
