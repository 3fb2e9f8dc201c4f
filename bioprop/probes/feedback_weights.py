"""feedback: the weights that carry errors back in a plugged model, by the layers they belong to."""
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

from bioprop.network.feedback import homes
from bioprop.network.layered import Layered
from bioprop.network.values import Kind, SeenOp
from bioprop.probes.fronts import make_model
from bioprop.probes.layers import labels
from bioprop.probes.model import Model, Values, batch_of, shapes_of
from bioprop.rules import Rule
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


def feedback_weights(model: nn.Module | nnx.Module, variables: Any, *sample: Any,
             rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any) -> FeedbackWeights:
  """Finds the feedback of a model, for `bioprop.measure.weight_alignment`.

  Under backprop B is W, under the sign rules sign(W) times its magnitudes. Layers whose input no
  parameter made are left out: what they send arrives nowhere. So are layers in a loop's stack,
  whose weights are no longer those of one layer, and products whose weight is made of several
  parameters.

  Args:
    model: an unbound linen module or an NNX module, plugged.
    variables: a linen model's variables, or the NNX model itself.
    *sample: the model's inputs, arrays or `jax.ShapeDtypeStruct`s.
    rngs: random streams of linen models, for rules that draw feedback at every call: B is a draw
      as a call makes one, and not that of any call. Without them such layers are left out. NNX
      models hold their own.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The weights and their feedback. Empty under rules of the whole network.

  Raises:
    MeasureError: if the variables are not the model's.
    SampleError: if there is no sample, or the model cannot be called on it.
  """
  return FeedbackOf(model, *sample, rngs=rngs, **kwargs)(variables)


class FeedbackOf:
  """`feedback` of one model at many variables: the model is traced at the first."""

  def __init__(self, model: nn.Module | nnx.Module, *sample: Any,
               rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any):
    """Arguments as in `feedback`."""
    self._alone = batch_of(1, sample)
    self._model = make_model('measure.feedback_weights', model, self._alone, rngs, kwargs)
    self._layered: Layered | None = None

  def __call__(self, variables: Any) -> FeedbackWeights:
    """The feedback at these variables; see `feedback`."""
    values = self._model.split(variables)
    if self._layered is None:
      self._layered = self._model.seen(shapes_of(values), self._alone)
    ops = self._layered.traced.network.ops
    found = FeedbackWeights({}, {}, {}, _dense(ops, values.params))
    if self._model.plug.choice.network is None:
      _find(found, self._model, self._layered, values, self._alone)
    return found


def _find(found: FeedbackWeights, model: Model, layered: Layered, values: Values, sample) -> None:
  """Adds the feedback of every op below which a parameter is."""
  network = layered.traced.network
  named, at = labels(network.ops), homes(network)
  weights, direct = model.plug.unpacked(layered, model.call(values, sample), values.stored)
  for op in network.ops:
    silent = layered.recurrent.get(op.number) is True
    if op.seen_x.kind is not Kind.DATA or not op.seen_x.live or op.stack or silent:
      continue
    own = direct.get(at[op.number], {})
    if _DIRECT in own:
      found.direct.setdefault(named[op.number], own[_DIRECT])
    if len(op.paths) == 1:
      b = _sent(layered.rules[op.number], op, values, {**own, **_picked(weights, op)})
      if b is not None:
        found.weights[op.path], found.sent[op.path] = values.params[op.path], b


def _picked(weights: Mapping[str, Array], op: SeenOp) -> dict[str, Array]:
  return {op.name: weights[op.path]} if op.path in weights else {}


def _sent(rule: Rule, op: SeenOp, values: Values, stored: Mapping[str, Array]) -> Array | None:
  """B of one parameter; None if there is none, or all of it is a call's own."""
  if rule.redraws and values.key is not None:
    stored = {**stored, 'key': jax.random.fold_in(values.key, zlib.crc32(op.path.encode()))}
  if rule.redraws and not stored:
    return None
  return (rule.sent_through({op.name: values.params[op.path]}, stored) or {}).get(op.name)


def _dense(ops: Sequence[SeenOp], params: Mapping[str, Array]) -> dict[str, Array]:
  """The weights of a model all of whose layers are dense and see what the one before put out."""
  named, weights, before = labels(ops), {}, frozenset()
  for op in ops:
    own, label = params[op.path], named[op.number]
    dense = len(op.paths) == 1 and (*op.x_aval.shape[1:], *op.y_aval.shape[1:]) == own.shape
    if not dense or op.seen_x.ends != before or label in weights:
      return {}
    weights[label], before = own, frozenset([op.number])
  return weights
