"""Which samples meet which: the two sides of a kernel, and numbers that vary along them."""
import enum

import jax.numpy as jnp

from bioprop.typing import Array


class View(enum.Enum):
  """The samples of both sides: [n, n'], or each with itself, [n, 1] and [1, n']."""
  FULL = (0, 1)
  ROWS = (0, 0)
  COLUMNS = (1, 1)

  @property
  def sides(self) -> tuple[int, int]:
    """The numbers of the sets of samples of both sides."""
    return self.value

  def left(self, numbers: Array, pairs: bool, rank: int | None = None) -> Array:
    """Numbers [n, *P] of the left side, to be multiplied by a kernel; rank: of the right's P."""
    rank = numbers.ndim - 1 if rank is None else rank
    own = numbers[None] if self is View.COLUMNS else numbers[:, None]
    return own.reshape(own.shape + (1,) * rank) if pairs else own

  def right(self, numbers: Array, pairs: bool, rank: int | None = None) -> Array:
    """Numbers [n', *P] of the right side; rank: of the left's P."""
    rank = numbers.ndim - 1 if rank is None else rank
    own = numbers[:, None] if self is View.ROWS else numbers[None]
    return own.reshape(own.shape[:2] + (1,) * rank + own.shape[2:]) if pairs else own

  def gram(self, left: Array, right: Array, pairs: bool) -> Array:
    """Sums over the last axis of products of [n, *P, k] and [n', *Q, k], as a kernel."""
    before, after = left.shape[1:-1], right.shape[1:-1]
    a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in (left, right))
    names = 'n', 'm' if self is View.FULL else 'n'
    out = ('nm' if self is View.FULL else 'n') + ('pq' if pairs else 'p')
    spec = f'{names[0]}pk,{names[1]}{"q" if pairs else "p"}k->{out}'
    full = jnp.einsum(spec, a, b, precision='highest')
    if self is not View.FULL:
      full = full[:, None] if self is View.ROWS else full[None]
    return full.reshape(full.shape[:2] + before + (after if pairs else ()))
