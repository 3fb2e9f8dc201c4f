"""Runs a network and its frozen twin side by side, for align_ada.

The *current* network computes with the parameters as they are; its *twin* with the initial ones.
The values are the current network's. The gradients are those of align_ada: errors travel down the
twin, through its weights and its local derivatives, and wherever parameters meet activities they
receive that error times the current activities.

A parameter is (now, twin), and its current value is differentiated as it is. Of data, (now, twin)
too, only the twin's value takes a cotangent. Where parameters meet data credit is assigned,

  current y = F(p, a) ,   twin y0 = F(p0, a0) ,   and the cotangent of y0 goes to F(., a) at p too,

which costs no product more: F(p, a) is the current network's own. All else is the same in both.
"""
from collections.abc import Sequence

from bioprop.errors import UnsupportedLayerError
from bioprop.jaxprs.layout import REMATS, bodies_of
from bioprop.network.values import Frame, Kind, Node, Seen, SeenOp
from bioprop.network.walk import Value, Walk, run_plain
from bioprop.rules.network import relay, stop
from bioprop.typing import Array, PyTree


class Twin(Walk):
  """Runs both networks."""

  def __init__(self, same_time: bool = True, muted: Sequence[bool] = ()):
    """Prepares it.

    Args:
      same_time: False: in a scan, the equations that make what it carries on are given no credit
        for what the same step puts out, only for what comes later.
      muted: outputs of the frame; equations that make these are given no credit at all.
    """
    self._same_time, self._muted = same_time, muted
    self._quiet: set[int] = set()

  def inside(self, node: Node, slices: PyTree) -> Walk:
    del slices
    muted = [at in self._quiet for at in node.outs] if node.name in REMATS else ()
    return Twin(self._same_time, muted)

  def evaluate(self, frame: Frame, arguments: Sequence[Value]) -> list[Value]:
    self._quiet = _makers(frame, self._muted)
    return super().evaluate(frame, arguments)

  def _branch(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    if frame.seen[node.ins[0]].kind & Kind.PARAMETER:  # The twin might take another branch.
      raise _unfollowed(node.name)
    return super()._branch(node, frame, ins)

  def body(self, node, frame, thread, slices, arguments):
    thread, outs = super().body(node, frame, thread, slices, arguments)
    if node.scan is None or self._same_time:
      return thread, outs
    carried = node.scan.carried
    put_out = Twin(self._same_time, [True] * carried + [False] * (len(outs) - carried))
    return thread, outs[:carried] + put_out.evaluate(frame, arguments)[carried:]

  def raised(self, value: Value, seen: Seen, wanted: Seen) -> Value:
    now, twin = value[0], value[-1]
    if wanted.kind is Kind.PARAMETER:
      return now, twin
    if wanted.kind is not Kind.DATA or seen.kind is Kind.DATA:
      return value
    return stop(now), relay(twin, now) if seen.kind is Kind.PARAMETER else twin

  def plain(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    kinds = [frame.seen[at].kind for at in node.ins]
    outs = [frame.seen[at].kind for at in node.outs]
    if not any(kind & Kind.PARAMETER for kind in outs):
      return [(a,) for a in run_plain(node, ins)]
    weights = [kind is Kind.PARAMETER for kind in kinds]
    if not any(kind & Kind.INPUT for kind in outs):
      return list(zip(run_plain(node, ins), run_plain(node, ins, 1)))
    if not any(weights):
      now, twin = run_plain(node, ins), run_plain(node, ins, 1)
      return [(stop(a), b) if kind & Kind.PARAMETER else (a,)
              for a, b, kind in zip(now, twin, outs)]
    if bodies_of(node.eqn):
      raise _unfollowed(node.name)
    # Only parameters take a gradient here; what else the equation reads is held at its current
    # value, and where credit is muted so are they.
    quiet = not self._quiet.isdisjoint(node.outs)
    held = [one if own and not quiet else (stop(one[0]),) for one, own in zip(ins, weights)]
    return [(stop(a), relay(b, b, a)) for a, b in zip(run_plain(node, held),
                                                      run_plain(node, ins, 1))]


def _unfollowed(name: str) -> UnsupportedLayerError:
  return UnsupportedLayerError(
      f'align_ada runs a frozen twin beside the network, equation by equation, and the model '
      f'uses parameters together with activities inside a {name!r}, into which the twin cannot '
      f'follow. Move the parameters out of it (lax.scan, nn.scan, nn.remat and jit are followed), '
      f'or choose a rule of single layers, such as \'align_prop\'.')


def _makers(frame: Frame, muted: Sequence[bool]) -> set[int]:
  """The slots from which muted outputs are made, and these themselves."""
  found = {at for at, flag in zip(frame.outs, muted) if flag}
  for step in reversed(frame.steps):
    for node in reversed(step.nodes if isinstance(step, SeenOp) else [step]):
      if found.intersection(node.outs):
        found.update(node.ins)
  return found


def values(params: Sequence[Array], initial: Sequence[Array],
           inputs: Sequence[Array]) -> list[Value]:
  """The arguments of a network: parameters as they are and as they were, and inputs."""
  return [*((now, stop(twin)) for now, twin in zip(params, initial)), *((a,) for a in inputs)]
