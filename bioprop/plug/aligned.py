"""aligned: weights and feedback that are certain to stay aligned, for models that are plugged."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from bioprop.errors import FeedbackMissingError, TheoryError
from bioprop.plug import tapped
from bioprop.plug.locations import TOLERANCE, distance
from bioprop.plug.network import PlugNetwork, batch_of, traced
from bioprop.plug.networks import make_network
from bioprop.plug.session import FEEDBACK
from bioprop.plug.traced import TracedOp, traced_calls, traced_ops
from bioprop.theory import flows
from bioprop.typing import Array, PyTree

_BATCH = 8  # Of random activities; of one alone all units might be off.
_OTHERWISE = ('To set the feedback alone, which guarantees nothing: '
              'bioprop.aligned(model, variables, x, scale=False).')


def aligned(model: nn.Module | nnx.Module, variables: Any, *sample: Any,
            rngs: Mapping[str, jax.Array] | None = None, scale: bool = True, **kwargs: Any) -> Any:
  """Starts a model so that its weights stay aligned with their feedback.

  The feedback becomes the initial weights, and no layer's weights are larger than the next one's
  (Robertson & Koyejo 2023, arXiv 2306.01870). Under gradient flow, whatever the data and the loss,
  <W, B> then stays above |B|^2 / 2 in every layer above the first. For 'fa', whose feedback it
  replaces, and 'align_prop'; under 'kp' without weight decay feedback that begins as the weights
  always equals them. Layers on backprop may be among these.

  It holds for chains: each layer sees what the one before put out, through things of one degree of
  homogeneity (ReLU, leaky ReLU, pooling, flattening, dropout, constant factors), and all parameters
  are weights and biases of these layers. Whether that is so is tried on random activities. Which
  weights are scaled, and by what, is said in `bioprop.theory.flows.aligned`: down from the readout,
  never up. Momentum, weight decay and large steps are not gradient flow.

  Args:
    model: an unbound linen module or an NNX module, plugged.
    variables: a linen model's variables, feedback among them; or the NNX model itself, which is
      changed.
    *sample: the model's inputs, arrays or `jax.ShapeDtypeStruct`s.
    rngs: random streams of linen models.
    scale: False: only the feedback is set, in models of any kind, and nothing is guaranteed.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The variables with other values and as they were in all else; of NNX models the model itself.

  Raises:
    TheoryError: if the model is no such chain or its rule has no such feedback, or a layer is zero.
    FeedbackMissingError: if the feedback is bound into the model.
    MeasureError: if the variables are not the model's.
  """
  if getattr(model, '_bound', None) is not None:
    raise FeedbackMissingError(
        'the feedback is bound into this model as it was when wrap was called, and no variables '
        'change it. Align first, and bind then: variables = bioprop.aligned(bioprop.wrap(model, '
        '\'fa\'), variables, x); model = bioprop.wrap(model, \'fa\', variables=variables).')
  some = batch_of(_BATCH, sample)
  network = make_network(model, some, rngs, kwargs)
  params, others = network.split(variables)
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, others))
  closed = traced(network.plain, *shapes, some, network.output)
  ops = traced_ops(closed)
  kept = _kept(network, ops, params, others)
  new = _scaled(closed, network, ops, kept, params, others, some) if scale else {}
  weights = {path: new.get(own, params[own]) for path, own in kept.items()}
  if isinstance(model, nnx.Module):
    back = {_beside(path): w for path, w in weights.items()}
    return _write_nnx(variables, {**new, **back})
  back = {f'{FEEDBACK}/{path}': w for path, w in weights.items()}
  learned = {f'params/{_beside(path)}': w for path, w in weights.items()}
  return _written_linen(variables, {
      **{f'params/{path}': value for path, value in new.items()}, **back, **learned})


def _kept(network: PlugNetwork, ops: Mapping[str, TracedOp], params, others) -> dict[str, str]:
  """The weights beside which their rule keeps what it sends errors through: paths in `params`."""
  kept = {}
  for label, op in ops.items():
    if network.rule_at(label) is not None and _sends_stored(network, label, op, params, others):
      stored = network.stored(label, others)
      kept.update((path, network.canonical(path)) for path in op.weights if _name(path) in stored)
  if not kept:
    names = ', '.join(sorted({type(rule).__name__ for rule in network.rules})) or 'none'
    raise TheoryError(
        f'no layer of the model sends errors through feedback that it keeps as it is, shaped like '
        f'its weights (its rules: {names}), so there is none to align. Choose fa, align_prop or '
        f'kp: bioprop.wrap(model, \'fa\'), or bioprop.install(model, \'fa\', rngs).')
  return kept


def _sends_stored(network: PlugNetwork, label: str, op: TracedOp, params, others) -> bool:
  """Whether a layer sends errors through what it stores, which nothing but its update moves."""
  rule, stored = network.rule_at(label), network.stored(label, others)
  own = {_name(path): params[network.canonical(path)] for path in op.weights}
  return rule.multiplies and not rule.redraws and rule.sent_through(own, stored) is stored


def _scaled(closed: core.ClosedJaxpr, network: PlugNetwork, ops: Mapping[str, TracedOp],
            kept: Mapping[str, str], params, others, sample) -> dict[str, Array]:
  """The parameters of a chain, by path, with weights that stay aligned with themselves."""
  calls = list(traced_calls(closed))
  weights = [network.canonical(path) for op in calls for path in op.weights]
  single = all(len(op.weights) == 1 for op in calls) and len(set(weights)) == len(calls)
  if not single or tapped.calls(closed) != {label: 1 for label in ops}:
    raise TheoryError(
        f'the layers {", ".join(map(repr, ops))} are no chain in which each has one weight and is '
        f'called once: one is called again, or in a loop, or shares its weight. {_OTHERWISE}')
  for at, (label, op) in enumerate(ops.items()):
    rule = network.rule_at(label)
    if not rule.multiplies or at and not rule.exact and not kept.keys() & op.weights.keys():
      raise TheoryError(
          f'the layer {label!r} learns by {type(rule).__name__}, which does not send its error '
          f'through feedback shaped like its weights, so nothing keeps the weights around it '
          f'aligned. Choose \'fa\' for it: {{{label!r}: \'fa\', ...}}. {_OTHERWISE}')
  biases = [f'{path.rpartition("/")[0]}/bias'.removeprefix('/') for path in weights]
  more = sorted(params.keys() - {*weights, *biases})
  if more:
    raise TheoryError(
        f'the model has parameters that are neither weights nor biases of its layers: '
        f'{", ".join(more)}. What they do is not homogeneous in the layers\' outputs, and weights '
        f'are not certain to stay aligned. Leave normalisation out. {_OTHERWISE}')
  degrees = _degrees(closed, ops, params, others, sample)
  start = flows.aligned([params[path] for path in weights], [params.get(path) for path in biases],
                        degrees)
  return {path: value for path, value in zip([*weights, *biases], [*start.weights, *start.biases])
          if value is not None}


def _degrees(closed: core.ClosedJaxpr, ops: Mapping[str, TracedOp], params, others,
             sample: PyTree) -> list[float]:
  """The degree k of what lies between each layer of a chain and the next.

  Parameters of zero make each layer put out what is added to it: random activities z, in the
  directions u z, with another number u for each layer. The next layer's input a then moves by
  k u a if it is a homogeneous function of z alone (Euler), and the output by the last layer's z.
  """
  labels, draw = list(ops), np.random.RandomState(0)
  z = {(label, 0): jnp.asarray(draw.standard_normal(op.y.shape), op.y.dtype)
       for label, op in ops.items()}
  u = {**dict(zip(labels, draw.uniform(1, 3, len(labels)))), labels[-1]: 0.0}

  @jax.jit
  def tried(arguments, z):
    inputs = lambda z: tapped.run(closed, arguments, z)
    moves = {call: of * jnp.asarray(u[call[0]], of.dtype) for call, of in z.items()}
    (_, seen), ((moved,), by) = jax.jvp(inputs, (z,), (moves,))
    found = []
    for label, after in zip(labels, labels[1:]):
      a, da = (of[after, 0].astype(np.promote_types(of[after, 0].dtype, np.float32))
               for of in (seen, by))
      da = da / jnp.asarray(u[label], da.dtype)
      k = jnp.vdot(a, da) / jnp.vdot(a, a)
      found.append((k, distance(da, k * a)))
    return found, jnp.max(jnp.abs(moved), initial=0)

  blank, inputs = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (params, sample))
  found, moved = tried(jax.tree.leaves((blank, others, inputs)), z)
  for (k, off), label, after in zip(found, labels, labels[1:]):
    if not (k > TOLERANCE and off < TOLERANCE):
      raise TheoryError(
          f'the input of the layer {after!r} is no homogeneous function of the output of the layer '
          f'{label!r} alone: between them is a nonlinearity such as tanh, normalisation, or '
          f'another path. Their weights are not certain to stay aligned: choose '
          f'activation=\'relu\' and no residual paths. {_OTHERWISE}')
  if moved > 0:
    raise TheoryError(
        f'the model\'s output depends on more than its last layer {labels[-1]!r}, so that errors '
        f'reach others by another path than through its feedback, and weights are not certain to '
        f'stay aligned. {_OTHERWISE}')
  return [float(k) for k, _ in found]


def _name(path: str) -> str:
  return path.rpartition('/')[2]


def _beside(path: str) -> str:
  """Where feedback lies that is kept beside its weight."""
  return f'{path.removesuffix(_name(path))}{FEEDBACK}_{_name(path)}'


def _written_linen(variables: Mapping[str, Any], values: Mapping[str, Array]) -> Any:
  """The variables with these values, by collection and path; boxes of metadata stay."""

  def one(at, leaf):
    path = '/'.join(key.key for key in at if isinstance(key, jax.tree_util.DictKey))
    return jnp.array(values[path], leaf.dtype) if path in values else leaf

  return jax.tree_util.tree_map_with_path(one, variables)


def _write_nnx(model: nnx.Module, values: Mapping[str, Array]) -> nnx.Module:
  for path, variable in nnx.iter_graph(model, graph=True):
    path = '/'.join(map(str, path))
    if isinstance(variable, nnx.Variable) and path in values:
      variable.set_value(jnp.array(values[path], variable.dtype))
  return model
