"""Probe: the measurements of a model under its rule, on one batch, at any moment of training."""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bioprop.errors import MeasureError
from bioprop.fronts.choice import Where
from bioprop.fronts.plug import plug
from bioprop.probes.feedback_weights import FeedbackOf
from bioprop.probes.jacobian import jacobians
from bioprop.probes.lazy import Lazy, find_lazy
from bioprop.probes.point import Batch, Loss, Point
from bioprop.probes.types import PREDICTED, TYPES
from bioprop.rules import AnyRule
from bioprop.typing import Array


def cross_entropy(outputs: Array, labels: Array) -> Array:
  """-log softmax of each label: outputs [..., C] and whole numbers [...] to [...].

  Raises:
    MeasureError: if there is not one class of each output.
  """
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != outputs.shape[:-1]:
    raise MeasureError(
        f'the cross-entropy of outputs {outputs.shape} takes a class for each, whole numbers of '
        f'shape {outputs.shape[:-1]}, and the labels are {labels.dtype}{list(labels.shape)}. Give '
        f'these, or the loss that was trained on: bioprop.measure.Probe(..., loss=loss).')
  # A class that there is not gives NaN in the gradient too, and no other class's.
  there = (labels >= 0) & (labels < outputs.shape[-1])
  one_hot = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
  one_hot = jnp.where(there[..., None], one_hot, jnp.asarray(jnp.nan, outputs.dtype))
  return -jnp.sum(one_hot * jax.nn.log_softmax(outputs), -1)


class Probe:
  """Measures a model under its rule on a fixed batch.

    probe = bioprop.measure.Probe(model, 'fa', (x, labels))
    found = probe.measure(variables)

  Everything is compiled at the first call, and again for no other.
  """

  def __init__(
      self,
      model: nn.Module | nnx.Module,
      rule: AnyRule | str | Mapping[str, AnyRule | str] | None,
      batch: tuple[Any, Array],
      *,
      types: Sequence[str] = tuple(TYPES),
      loss: Loss = cross_entropy,
      block: int | None = None,
      output: Where = None,
      rngs: Mapping[str, jax.Array] | None = None,
      like: 'Probe | None' = None,
      lazy: Lazy | None = None,
      **kwargs: Any,
  ):
    """Prepares the measurements; computes nothing but the lazy limit, where a type asks for it.

    Args:
      model: an unbound linen module, plain or plugged, or an NNX model.
      rule: what a plain linen model is plugged with, as in `bioprop.plug`; None for a model that
        has its rule already: a plugged linen model, and every NNX model; a plain one has backprop.
      batch: inputs [n, ...], and labels; a tuple of inputs where the model takes several.
      types: which of 'entk' (the effective eNTK, its alignment with the targets, its shares by
        parameter), 'features' (each layer's kernels Phi, G, G~), 'angles' (between pseudogradients
        and gradients), 'alignment' (between weights and feedback), and 'theory' (the kernel of
        infinite width); without a word, all but the last.
      loss: maps outputs and labels to the loss of each sample; its gradient is the error.
      block: at most so many samples' derivatives are held at once; None: all.
      output: which of the model's outputs, as in `bioprop.plug`.
      rngs: random streams of a linen model, for rules that draw at every call.
      like: a probe of the same model and rule, on samples of the same shape: what it has compiled
        serves this one too.
      lazy: of type 'theory', what `find_lazy` found of the model on the batch; None: found here,
        without a prediction of losses.
      **kwargs: the model's keyword arguments. Say train=False where it matters: under batch
        statistics no sample has an output of its own.

    Raises:
      MeasureError: if there is no such type, the batch is no pair of as many inputs and labels, or
        an NNX model is given a rule here.
      UnknownRuleError, RuleOptionError, PatternError: if `rule` cannot be read.
      TheoryError: of type 'theory', if the model or its rule has no lazy limit.
    """
    types = (types,) if isinstance(types, str) else types
    for name in types:
      if name not in (*TYPES, *PREDICTED):
        raise MeasureError(f'there is no probe of type {name!r}. Valid: '
                           f'{", ".join((*TYPES, *PREDICTED))}.')
    if not isinstance(batch, tuple | list) or len(batch) != 2:
      raise MeasureError('a probe\'s batch is a pair of inputs and labels: '
                         'bioprop.measure.Probe(model, \'fa\', (x, labels)).')
    if rule is not None and isinstance(model, nnx.Module):
      raise MeasureError(
          'an NNX model has its rule in itself: bioprop.plug(model, rule, nnx.Rngs(1), x), and '
          'then bioprop.measure.Probe(model, None, (x, labels)).measure(model).')
    model = model if rule is None else plug(model, rule, output=output)
    inputs = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
    self._batch, self._types = Batch(batch[0], jnp.asarray(batch[1])), tuple(types)
    counts = {len(leaf) for leaf in jax.tree.leaves(self._batch)}
    if len(counts) != 1:
      raise MeasureError(f'a probe\'s batch has a label for each sample, and here are arrays of '
                         f'{sorted(counts)} entries. Give as many labels as inputs.')
    self._loss, self._block = loss, block
    if like is None:
      self._jacobians = jacobians(model, *inputs, output=output, rngs=rngs, **kwargs)
      self._feedback = FeedbackOf(model, *inputs, rngs=rngs, **kwargs)
    else:
      self._jacobians, self._feedback = like._jacobians, like._feedback
    self._lazy = lazy
    if lazy is None and set(types) & set(PREDICTED):
      self._lazy = find_lazy(model, self._batch, loss, block=block, output=output, **kwargs)

  def measure(self, variables: Any, step: int | None = None) -> dict[str, np.ndarray]:
    """Measures all at a linen model's variables, or at the NNX model.

    Args:
      variables: what `init` returned, the parameters as they are now; or the NNX model.
      step: how many steps of training were made, for predictions of that moment; None: unknown.

    Returns:
      What the types give, as NumPy arrays: under '<type>/<name>' if there are several types.

    Raises:
      MeasureError: if the variables are not the model's, or a sample's output depends on others.
    """
    point = Point(self._jacobians, self._feedback, self._loss, self._batch, self._block, variables,
                  self._lazy, step)
    found = {name: {**TYPES, **PREDICTED}[name](point) for name in self._types}
    if len(found) == 1:
      (found,) = found.values()
    else:
      found = {f'{name}/{key}': value for name, own in found.items() for key, value in own.items()}
    return {key: np.asarray(value) for key, value in jax.device_get(found).items()}
