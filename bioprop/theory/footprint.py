"""Memory of the mean-field solver, told before it is taken."""
from collections.abc import Callable

from bioprop.theory.activations import Activation
from bioprop.theory.elementwise import as_activation
from bioprop.theory.problem import Program, tangents
from bioprop.theory.responses import letters, of_layer
from bioprop.typing import Array


def memory(steps: int, size: int, depth: int, samples: int, rule: str, itemsize: int = 4,
           phi: str | Activation | Callable[[Array], Array] = 'tanh', outputs: int = 1,
           kernels: int | None = None, past: str = 'kept') -> int:
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
    past: 'kept' or 'summed', which is O(depth samples (samples + P C n)).
  """
  kept, kinds = steps if kernels is None else kernels, letters(rule, depth)
  along = tangents(Program(rule, as_activation(phi), depth, steps, samples, 'mse', past=past))
  entries, field = steps * size * samples, size * samples
  # Of what kernels are taken of, and of one time.
  fields = (depth * kept * (1 + 2 * outputs) + 16 * outputs) * field
  found = 4 * depth * (kept * size)**2 + (kept + 2) * (size * outputs)**2
  if past == 'summed':
    fields += (depth - 1) * samples * (4 * samples + (2 + 4 * len(kinds)) * outputs * size)
  else:
    # Histories are written into a copy of their own, each time.
    histories = sum((1 + len(one)) * ((at < depth - 1) + (at > 0)) for at, one in enumerate(along))
    regressed = 0 if any(along) else sum(
        len(of_layer(rule, depth, number)) for number in range(depth))
    fields += (2 * (histories + regressed) + 3 * (regressed > 0) + 4 * any(along)) * entries
    fields += 4 * outputs * steps * size**2 * (depth > 1)
    rows = sum(outputs if one in 'bd' else 1 for one in kinds)
    found += (depth - 1) * rows * (kept * size)**2
  # As they are found; and the replicas' mean, the newest, and how far it is away.
  return round(itemsize * (fields + 5 * found))
