"""Memory of the mean-field solver, told before it is taken."""
from collections.abc import Callable

from bioprop.theory.activations import Activation
from bioprop.theory.elementwise import as_activation
from bioprop.theory.problem import Program
from bioprop.theory.responses import letters, of_layer
from bioprop.theory.state import tangents
from bioprop.typing import Array


def memory(steps: int, size: int, depth: int, samples: int, rule: str, itemsize: int = 4,
           phi: str | Activation | Callable[[Array], Array] = 'tanh', outputs: int = 1,
           kernels: int | None = None) -> int:
  """Bytes that `solve_dmft` needs.

  O(depth samples P (T + C n) + depth (n P)^2 + n (P C)^2), and nothing of it grows with T where
  there is one hidden layer.

  Args:
    steps: T.
    size: P, samples for training and testing.
    depth: hidden layers.
    samples: copies of a neuron.
    rule: the rule, whose tangents are kept beside the fields.
    itemsize: bytes of a number: 4 in float32.
    phi: the nonlinearity; where it has kinks, fields are kept in place of tangents.
    outputs: C.
    kernels: n, times at which kernels are kept; None: all.
  """
  kept = steps if kernels is None else kernels
  along = tangents(Program(rule, as_activation(phi), depth, steps, samples, 'mse'))
  entries, fields = steps * size * samples, 0.0
  for number in range(depth):
    histories = (number < depth - 1) + (number > 0)
    fields += (1 + len(along[number])) * histories * entries
    if not along[number]:
      fields += 1.5 * len(of_layer(rule, depth, number)) * entries
    # Of what is kept, and of the field at one time with its tangents.
    fields += kept * size * samples * (1 + 2 * outputs)
  fields += 3 * entries * any(along) + 12 * size * outputs * samples
  rows = (depth - 1) * sum(outputs if one in 'bd' else 1 for one in letters(rule, depth))
  found = (4 * depth + rows) * (kept * size)**2 + kept * (size * outputs)**2
  # As they are found; and the replicas' mean, the newest, and how far it is away.
  return round(itemsize * (fields + 5 * found + 4 * outputs * steps * size**2 * (depth > 1)))
