"""Finds weights that the model also uses past their own layers, where no rule can act on them.

`x @ embed.embedding.T` reads a layer's weight behind its back: that use would learn by backprop
while the layer learns by its rule. The ops mark their weights with a name; in the model's jaxpr a
parameter leaks if its value reaches the output by a way that passes none of those marks.
"""
from collections.abc import Sequence

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from bioprop.errors import UnsupportedLayerError
from bioprop.rules.jaxprs import body_of
from bioprop.typing import Params

_MARK = 'bioprop weight:'

Sources = frozenset[int]  # Positions of the jaxpr's inputs that a value depends on.
_NONE: Sources = frozenset()


def mark_weights(params: Params, weights: Sequence[str], path: str) -> Params:
  """Names an op's weights in the jaxpr; the values are unchanged."""
  return {name: checkpoint_name(w, f'{_MARK}{path}/{name}') if name in weights else w
          for name, w in params.items()}


def refuse_leaks(closed: core.ClosedJaxpr) -> None:
  """Raises UnsupportedLayerError if a marked weight reaches an output past its mark.

  Args:
    closed: jaxpr of a model whose ops' weights are marked; its outputs are the model's outputs.
  """
  search = _Search([var.aval.size for var in closed.jaxpr.invars])
  outs = search.run(closed.jaxpr, [frozenset([i]) for i in range(len(closed.jaxpr.invars))])
  leaked = frozenset().union(*outs)
  for path, sources in search.owners.items():
    if sources & leaked:
      layer, _, name = path.rpartition('/')
      raise UnsupportedLayerError(
          f'the model uses the weight {path!r} outside its layer too, as in '
          f'x @ layer.{name}.T. No rule can act there, and the weight would in part silently learn '
          f'by backprop. Call the layer instead (an embedding has attend: embed.attend(x)), or '
          f'leave it on backprop, in place of the rule: {{{layer!r}: \'bp\', \'*\': ...}}.')


class _Search:
  """Follows inputs through a jaxpr, up to the marks.

  Attributes:
    owners: the inputs that arrive at each mark, by the path of its weight.
  """

  def __init__(self, sizes: Sequence[int]):
    self._sizes = sizes
    self.owners: dict[str, Sources] = {}

  def run(self, jaxpr: core.Jaxpr, arguments: Sequence[Sources]) -> list[Sources]:
    """The inputs that each output depends on differentiably."""
    known = dict(zip(jaxpr.invars, arguments))
    read = lambda atom: _NONE if isinstance(atom, core.Literal) else known.get(atom, _NONE)
    for eqn in jaxpr.eqns:
      outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
      known.update((var, out if _differentiable(var) else _NONE)
                   for var, out in zip(eqn.outvars, outs))
    return [read(atom) for atom in jaxpr.outvars]

  def _equation(self, eqn, ins: list[Sources]) -> list[Sources]:
    kind, params = eqn.primitive.name, eqn.params
    if kind == 'name' and params['name'].startswith(_MARK):
      path = params['name'].removeprefix(_MARK)
      size = eqn.invars[0].aval.size
      # A small parameter may scale both the weight and something else; it is not the weight.
      large = frozenset(i for i in ins[0] if self._sizes[i] >= size)
      self.owners[path] = self.owners.get(path, _NONE) | large
      return [_NONE]
    if kind == 'stop_gradient':
      return [_NONE]
    if kind == 'scan':
      consts, carry = params['num_consts'], params['num_carry']
      return self._loop(params['jaxpr'].jaxpr, ins, consts, carry)
    if kind == 'while':
      first = params['cond_nconsts']
      body, consts = params['body_jaxpr'].jaxpr, params['body_nconsts']
      return self._loop(body, ins[first:], consts, len(ins) - first - consts)
    if kind == 'cond':
      branches = [self.run(branch.jaxpr, ins[1:]) for branch in params['branches']]
      return [frozenset().union(*outs) for outs in zip(*branches)]
    body = body_of(eqn)
    if body is not None and len(body.jaxpr.invars) == len(ins):
      return self.run(body.jaxpr, ins)
    return [frozenset().union(*ins)] * len(eqn.outvars)

  def _loop(self, body: core.Jaxpr, ins, consts: int, carry: int) -> list[Sources]:
    """Runs a loop's body until what its carry depends on stays the same."""
    ins = list(ins)
    while True:
      outs = self.run(body, ins)
      grown = [a | b for a, b in zip(ins[consts:consts + carry], outs)]
      if grown == ins[consts:consts + carry]:
        return outs
      ins[consts:consts + carry] = grown


def _differentiable(var) -> bool:
  return jnp.issubdtype(getattr(var.aval, 'dtype', jnp.int32), jnp.inexact)
