"""feedback: the weights that carry errors back in a plugged model, by the layers they belong to."""
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx
from jax.extend import core

from bioprop.plug import marks
from bioprop.plug.network import PlugNetwork, batch_of, traced
from bioprop.plug.networks import make_network
from bioprop.plug.reach import NONE, Sources, reach
from bioprop.plug.traced import traced_calls, traced_ops
from bioprop.typing import Array

_DIRECT = 'error'  # What direct feedback is called beside a layer.


class FeedbackWeights(NamedTuple):
  """Feedback by layer; see `feedback`.

  Attributes:
    weights: W of each layer with feedback, by path.
    sent: B, shaped like W and by its path: the layer sends g to its input through it.
    direct: B [outputs of the network, features of the layer's input], by the layer's label.
    dense: the weights [in, out] of the model's layers in the order of their calls, by label, if all
      are such and each is used once; empty otherwise.
  """
  weights: dict[str, Array]
  sent: dict[str, Array]
  direct: dict[str, Array]
  dense: dict[str, Array]

  def above(self, label: str) -> list[Array] | None:
    """The weights that lead from a layer's input to the network's output; None if unknown."""
    if label not in self.dense:
      return None
    labels = list(self.dense)
    chain = [self.dense[one] for one in labels[labels.index(label):]]
    leads = all(w.shape[1] == after.shape[0] for w, after in zip(chain, chain[1:]))
    return chain if leads else None


def feedback(model: nn.Module | nnx.Module, variables: Any, *sample: Any,
             rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any) -> FeedbackWeights:
  """Finds the feedback of a model, for `bioprop.measure.weight_alignment`.

  Under backprop B is W, under the sign rules sign(W) times its magnitudes. Layers whose input no
  parameter made are left out: what they send arrives nowhere. So are layers in a loop's stack,
  whose weights are no longer those of one layer.

  Args:
    model: an unbound linen module or an NNX module, plugged.
    variables: a linen model's variables, or the NNX model itself.
    *sample: the model's inputs, arrays or `jax.ShapeDtypeStruct`s.
    rngs: random streams of linen models, for rules that draw feedback at every call: B is a draw
      as a call makes one, and not that of any call. Without them such layers are left out.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The weights and their feedback. Empty under rules of the whole network.

  Raises:
    MeasureError: if the variables are not the model's.
  """
  return FeedbackOf(model, *sample, rngs=rngs, **kwargs)(variables)


class FeedbackOf:
  """`feedback` of one model at many variables: the model is traced at the first."""

  def __init__(self, model: nn.Module | nnx.Module, *sample: Any,
               rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any):
    """Arguments as in `feedback`."""
    self._alone, self._rngs = batch_of(1, sample), rngs or {}
    self._network = make_network(model, self._alone, rngs, kwargs)
    self._traced: core.ClosedJaxpr | None = None

  def __call__(self, variables: Any) -> FeedbackWeights:
    """The feedback at these variables; see `feedback`."""
    params, others = self._network.split(variables)
    if self._traced is None:
      shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, others))
      self._traced = traced(self._network.plain, *shapes, self._alone, self._network.output)
    return _found(self._traced, self._network, params, others, self._rngs)


def _found(closed: core.ClosedJaxpr, network: PlugNetwork, params, others,
           rngs: Mapping[str, jax.Array]) -> FeedbackWeights:
  is_parameter = [at < len(params) for at in range(len(closed.jaxpr.invars))]
  sources = _sources(closed, [frozenset(['parameter'] if one else []) for one in is_parameter])
  ops = traced_ops(closed)
  found = FeedbackWeights({}, {}, {}, _dense(closed, ops, params, network.canonical))
  for label, op in ops.items():
    rule = network.rule_at(label)
    own = {path: params[network.canonical(path)] for path in op.weights}
    if rule is None or not sources.get(label) or any(
        own[path].shape != shape.shape for path, shape in op.weights.items()):
      continue
    stored = network.stored(label, others)
    if _DIRECT in stored:
      found.direct[label] = stored[_DIRECT]
    if rule.redraws and 'feedback' in rngs:
      stored = {**stored, 'key': jax.random.fold_in(rngs['feedback'], zlib.crc32(label.encode()))}
    if rule.redraws and not stored:  # All of its feedback is a call's own.
      continue
    names = {path.rpartition('/')[2]: path for path in own}
    sent = rule.sent_through({name: own[path] for name, path in names.items()}, stored)
    for name, path in names.items():
      if sent is not None and name in sent:
        found.weights[path], found.sent[path] = own[path], sent[name]
  return found


def _dense(closed: core.ClosedJaxpr, ops, params, canonical) -> dict[str, Array]:
  """The weights of a model all of whose layers are dense and see what the one before put out."""
  if len(list(traced_calls(closed))) > len(ops):
    return {}
  sources = _sources(closed, [frozenset()] * len(closed.jaxpr.invars))
  weights, before = {}, frozenset()
  for label, op in ops.items():
    own = [params[canonical(path)] for path in op.weights]
    if len(own) != 1 or (*op.x.shape[1:], *op.y.shape[1:]) != own[0].shape or (
        sources[label] != before):
      return {}
    weights[label], before = own[0], frozenset([label])
  return weights


def _sources(closed: core.ClosedJaxpr, inputs: list[Sources]) -> dict[str, Sources]:
  """By the label of each op what its input depends on: what is said of `inputs`, and ops' outputs.

  What an op puts out depends on that op, and on nothing before it.
  """
  found: dict[str, Sources] = {}

  def known(eqn, ins):
    label = marks.input_of(eqn.primitive, eqn.params)
    if label is not None:
      found[label] = found.get(label, NONE).union(*ins)
    label = marks.output_of(eqn.primitive, eqn.params)
    return None if label is None else [frozenset([label])]

  reach(closed.jaxpr, inputs, known)
  return found
