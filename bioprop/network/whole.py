"""A model as rules of the whole network see it."""
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bioprop.network import gates
from bioprop.network.see import data, parameter, see, where_parameters_meet
from bioprop.network.twin import Twin, values
from bioprop.network.values import Kind
from bioprop.rules import Network
from bioprop.rules.network import relay, stop
from bioprop.typing import Array, Params, PyTree


class TracedNetwork(Network):
  """See `bioprop.rules.Network`."""

  def twin(self, params: Params, initial: Params, same_time: bool) -> tuple[PyTree, PyTree]:
    shapes, network = self._seen(params, where_parameters_meet)
    outs = Twin(same_time).evaluate(
        network.frame, values(*map(jax.tree.leaves, (params, initial, self.inputs))))
    ends = [relay(stop(one[0]), one[1]) if network.frame.seen[at].kind is Kind.DATA else one[0]
            for one, at in zip(outs, network.frame.outs)]
    return jax.tree.unflatten(jax.tree.structure(shapes), ends)

  def relus(self, params: Params) -> list[jax.ShapeDtypeStruct]:
    found = []

    def note(number: int, h: Array) -> Array:
      del number
      found.append(jax.ShapeDtypeStruct(h.shape, h.dtype))
      return h

    jax.eval_shape(lambda params: self.gated(params, note)[0], params)
    return found

  def gated(self, params: Params, replacement: Callable[[int, Array], Array]
            ) -> tuple[tuple[PyTree, PyTree], int]:
    shapes, network = self._seen(params, gates.written_out)
    walk = gates.Gates(replacement)
    arguments = [(a,) for a in jax.tree.leaves((params, self.inputs))]
    outs = [one for one, in walk.evaluate(network.frame, arguments)]
    return jax.tree.unflatten(jax.tree.structure(shapes), outs), walk.count

  def _seen(self, params: Params, inline: Any):
    closed, shapes = jax.make_jaxpr(self.function, return_shape=True)(params, self.inputs)
    count = len(jax.tree.leaves(params))
    inputs: Sequence[Any] = closed.jaxpr.invars[count:]
    return shapes, see(closed, [*(parameter(str(at)) for at in range(count)),
                                *data([var.aval for var in inputs])], inline)
