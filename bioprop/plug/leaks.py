"""Finds weights that the model also uses past their own layers, where no rule can act on them.

`x @ embed.embedding.T` reads a layer's weight behind its back: that use would learn by backprop
while the layer learns by its rule. The ops mark their weights; in the model's jaxpr a parameter
leaks if its value reaches the output by a way that passes none of those marks.
"""
from jax.extend import core

from bioprop.errors import UnsupportedLayerError
from bioprop.plug import marks
from bioprop.plug.reach import NONE, Sources, reach


def refuse_leaks(closed: core.ClosedJaxpr) -> None:
  """Raises UnsupportedLayerError if a marked weight reaches an output past its mark.

  Args:
    closed: jaxpr of a model whose ops' weights are marked; its outputs are the model's outputs.
  """
  sizes = [var.aval.size for var in closed.jaxpr.invars]
  owners: dict[str, Sources] = {}  # The inputs that arrive at each mark, by the weight's path.

  def known(eqn, ins):
    path = marks.weight_of(eqn)
    if path is None:
      return None
    # A small parameter may scale both the weight and something else; it is not the weight.
    large = frozenset(i for i in ins[0] if sizes[i] >= eqn.invars[0].aval.size)
    owners[path] = owners.get(path, NONE) | large
    return [NONE]

  leaked = NONE.union(*reach(closed.jaxpr, [frozenset([i]) for i in range(len(sizes))], known))
  for path, sources in owners.items():
    if sources & leaked:
      layer, _, name = path.rpartition('/')
      raise UnsupportedLayerError(
          f'the model uses the weight {path!r} outside its layer too, as in '
          f'x @ layer.{name}.T. No rule can act there, and the weight would in part silently learn '
          f'by backprop. Call the layer instead (an embedding has attend: embed.attend(x)), or '
          f'leave it on backprop, in place of the rule: {{{layer!r}: \'bp\', \'*\': ...}}.')
