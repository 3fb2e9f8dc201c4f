"""Which axis of a value is the samples': how each equation moves it.

Rules that broadcast the error must know which axis of an op's input is the batch. In a model that
is written for one sample and vmapped it need not be the first, as JAX moves batch axes at will.
"""
import math
from collections.abc import Sequence

from jax.extend import core

from bioprop.jaxprs.layout import Body, body_of, branches_of, scan_of

Axis = int | None
_REDUCTIONS = frozenset('''reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax
    argmin reduce_xor squeeze'''.split())


def moved(eqn: core.JaxprEqn, axes: Sequence[Axis]) -> list[Axis]:
  """The samples' axis of each output of an equation, None where there is none or it is unknown.

  Args:
    eqn: an equation that is not entered.
    axes: the samples' axis of each input.
  """
  if all(axis is None for axis in axes):
    return [None] * len(eqn.outvars)
  if eqn.primitive.name == 'scan':
    return _scan(eqn, axes)
  if eqn.primitive.name == 'cond':
    return _joined([_through(branch, axes[1:]) for branch in branches_of(eqn)])
  if (body := body_of(eqn)) is not None and _calls(eqn, body):
    return _through(body, axes)
  special = _SPECIAL.get(eqn.primitive.name)
  if special is not None:
    return [special(eqn, axes)] * len(eqn.outvars)
  if eqn.primitive.name in _REDUCTIONS:
    return [_without(axes[0], eqn.params.get('axes', eqn.params.get('dimensions')))]
  return [_like(eqn, axes, _shape(var)) for var in eqn.outvars]


def _calls(eqn, body: Body) -> bool:
  """Whether an equation runs its body once, on its own operands; a reduction does not."""
  shapes = lambda atoms: [_shape(atom) for atom in atoms]
  return (shapes(eqn.invars), shapes(eqn.outvars)) == (
      shapes(body.jaxpr.invars), shapes(body.jaxpr.outvars))


def _through(body: Body, axes: Sequence[Axis]) -> list[Axis]:
  """Of what a jaxpr puts out."""
  known = dict(zip(body.jaxpr.invars, axes))
  read = lambda atom: None if isinstance(atom, core.Literal) else known.get(atom)
  for eqn in body.jaxpr.eqns:
    known.update(zip(eqn.outvars, moved(eqn, [read(atom) for atom in eqn.invars])))
  return [read(atom) for atom in body.jaxpr.outvars]


def _scan(eqn, axes) -> list[Axis]:
  scan = scan_of(eqn)
  first = scan.consts + scan.carried
  sliced = [None if axis in (None, 0) else axis - 1 for axis in axes[first:]]
  carry = list(axes[scan.consts:first])
  while True:  # Until what is known of the carry is what the body gives back.
    outs = _through(scan.body, [*axes[:scan.consts], *carry, *sliced])
    joined = _joined([carry, outs[:scan.carried]])
    if joined == carry:
      return [*carry, *(None if axis is None else axis + 1 for axis in outs[scan.carried:])]
    carry = joined


def _joined(rows: Sequence[Sequence[Axis]]) -> list[Axis]:
  """Of values that are one of several; constants among them have no axis."""
  return [next((axis for axis in own if axis is not None), None) for own in zip(*rows)]


def _shape(atom) -> tuple[int, ...]:
  return tuple(getattr(atom.aval, 'shape', ()))


def _like(eqn, axes, shape) -> Axis:
  """Of an equation that leaves axes in their places.

  Where operands differ, one of them, such as a mask of all positions, has no samples.
  """
  shapes = [_shape(atom) for atom in eqn.invars]
  return min((axis for own, axis in zip(shapes, axes) if axis is not None
              and len(own) == len(shape) and own[axis] == shape[axis]), default=None)


def _without(axis: Axis, removed: Sequence[int]) -> Axis:
  if axis is None or axis in removed:
    return None
  return axis - sum(other < axis for other in removed)


def _broadcast(eqn, axes) -> Axis:
  return None if axes[0] is None else eqn.params['broadcast_dimensions'][axes[0]]


def _stack(eqn, axes) -> Axis:
  axis = next(axis for axis in axes if axis is not None)
  return axis + (eqn.params['axis'] <= axis)


def _unstack(eqn, axes) -> Axis:
  return _without(axes[0], (eqn.params['axis'],))


def _transpose(eqn, axes) -> Axis:
  return None if axes[0] is None else tuple(eqn.params['permutation']).index(axes[0])


def _reshape(eqn, axes) -> Axis:
  """The axis that begins where the samples' did; it may have merged with later ones."""
  axis, (old, new) = axes[0], (_shape(eqn.invars[0]), _shape(eqn.outvars[0]))
  if axis is None:
    return None
  before = math.prod(old[:axis])
  starts = [at for at in range(len(new)) if math.prod(new[:at]) == before
            and new[at] % old[axis] == 0]
  # Axes of one entry, which one sample is too, leave a choice.
  best = [at for at in starts if new[at] == old[axis]] or starts
  return axis if axis in best else best[-1] if best else None


def _dot_general(eqn, axes) -> Axis:
  (contracted, batch) = eqn.params['dimension_numbers']
  ranks = [len(_shape(atom)) for atom in eqn.invars[:2]]
  free = [[at for at in range(rank) if at not in (*contracted[i], *batch[i])]
          for i, rank in enumerate(ranks)]
  for side, axis in enumerate(axes[:2]):
    if axis is None or axis in contracted[side]:
      continue
    if axis in batch[side]:
      return tuple(batch[side]).index(axis)
    return len(batch[0]) + free[side].index(axis) + (len(free[0]) if side else 0)
  return None


def _convolution(eqn, axes) -> Axis:
  numbers = eqn.params['dimension_numbers']
  return numbers.out_spec[0] if axes[0] == numbers.lhs_spec[0] else None


def _gather(eqn, axes) -> Axis:
  numbers = eqn.params['dimension_numbers']
  rank = len(_shape(eqn.outvars[0]))
  operand, indices = axes[:2]
  if indices is not None and indices < len(_shape(eqn.invars[1])) - 1:
    return [at for at in range(rank) if at not in numbers.offset_dims][indices]
  kept = [at for at in range(len(_shape(eqn.invars[0])))
          if at not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
  return numbers.offset_dims[kept.index(operand)] if operand in kept else None


_SPECIAL = {'broadcast_in_dim': _broadcast, 'transpose': _transpose, 'reshape': _reshape,
            'dot_general': _dot_general, 'conv_general_dilated': _convolution, 'gather': _gather,
            'stack': _stack, 'unstack': _unstack}
