"""aligned_init: plugged models whose weights and feedback are certain to stay aligned."""
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bioprop.errors import FeedbackMissingError, TheoryError
from bioprop.fronts.function import FEEDBACK
from bioprop.fronts.nnx_run import stored
from bioprop.network.layered import Layered
from bioprop.network.values import SeenOp
from bioprop.probes.fronts import make_model
from bioprop.probes.layers import labels
from bioprop.probes.locations import TOLERANCE, distance
from bioprop.probes.made import Made
from bioprop.probes.model import Model, Values, batch_of, plain, shapes_of
from bioprop.rules import Rule
from bioprop.theory import flows
from bioprop.typing import Array, PyTree

_BATCH = 8  # Of random activities; of one alone all units might be off.
_OTHERWISE = ('To set the feedback alone, which guarantees nothing: '
              'bioprop.theory.aligned_init(model, variables, x, scale=False).')


def aligned_init(model: nn.Module | nnx.Module, variables: Any, *sample: Any,
                 rngs: Mapping[str, jax.Array] | None = None, scale: bool = True,
                 **kwargs: Any) -> Any:
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
    SampleError: if there is no sample, or the model cannot be called on it.
  """
  if getattr(model, 'bioprop_bound', None) is not None:
    raise FeedbackMissingError(
        'the feedback is bound into this model as it was when plug was called, and no variables '
        'change it. Align first, and bind then: variables = bioprop.theory.aligned_init('
        'bioprop.plug(model, \'fa\'), variables, x); '
        'model = bioprop.plug(model, \'fa\', variables=variables).')
  some = batch_of(_BATCH, sample)
  made = make_model('theory.aligned_init', model, some, rngs, kwargs)
  values = made.split(variables)
  layered = made.seen(shapes_of(values), some)
  kept = _kept(made, layered, values, some)
  new = _scaled(made, layered, kept, values, some) if scale else {}
  weights = {path: new.get(path, values.params[path]) for path in kept}
  if isinstance(model, nnx.Module):
    return _write_nnx(variables, new, weights)
  learned = {_beside(path): w for path, w in weights.items()}
  back = {f'{FEEDBACK}/{path}': w for path, w in weights.items()}
  return _written_linen(variables, {
      **{f'params/{path}': value for path, value in {**new, **learned}.items()}, **back})


def _kept(model: Model, layered: Layered, values: Values, sample) -> list[str]:
  """The weights beside which their rule keeps what it sends errors through: paths in `params`."""
  stored, kept = {}, []
  if model.plug.choice.network is None:
    stored, _ = model.plug.unpacked(layered, model.call(values, sample), values.stored)
  for op in layered.traced.network.ops:
    rule = layered.rules[op.number]
    kept += [path for path in op.paths if path in stored and path not in kept
             and _sends_stored(rule, path, values.params[path], stored[path])]
  if not kept:
    raise TheoryError(
        f'no layer of the model sends errors through feedback that it keeps as it is, shaped like '
        f'its weights (its rules: {model.named()}), so there is none to align. Choose fa, '
        f'align_prop or kp: bioprop.plug(model, \'fa\'), or bioprop.plug(model, \'fa\', rngs).')
  return kept


def _sends_stored(rule: Rule, path: str, w: Array, b: Array) -> bool:
  """Whether an op sends errors through what is stored, which nothing but its update moves."""
  stored = {_name(path): b}
  return rule.multiplies and not rule.redraws and (
      rule.sent_through({_name(path): w}, stored) is stored)


def _scaled(model: Model, layered: Layered, kept: Sequence[str], values: Values,
            sample) -> dict[str, Array]:
  """The parameters of a chain, by path, with weights that stay aligned with themselves."""
  ops, params = layered.traced.network.ops, values.params
  named = labels(ops)
  made = [path for op in ops for path in (*op.paths, *op.seen_bias.paths)]
  single = all(op.outermost and len(op.paths) == 1 and len(op.seen_bias.paths) < 2 for op in ops)
  if not single or len(set(made)) < len(made):
    raise TheoryError(
        f'the layers {", ".join(map(repr, dict.fromkeys(named.values())))} are no chain in which '
        f'each has one weight and is called once: one is called again, or in a loop, or shares its '
        f'weight. {_OTHERWISE}')
  for op in ops:
    rule, label = layered.rules[op.number], named[op.number]
    sent = rule.exact or op.path in kept or not op.seen_x.live
    if not rule.multiplies or op.number and not sent:
      raise TheoryError(
          f'the layer {label!r} learns by {type(rule).__name__}, which does not send its error '
          f'through feedback shaped like its weights, so nothing keeps the weights around it '
          f'aligned. Choose \'fa\' for it: {{{label!r}: \'fa\', ...}}. {_OTHERWISE}')
    if not _linear(layered, op, params[op.path]):
      raise TheoryError(
          f'the layer {label!r} multiplies with a function of its parameter {op.path!r} that is '
          f'not linear, such as a normalised one, and its weights are not certain to stay aligned. '
          f'{_OTHERWISE}')
  more = sorted(params.keys() - set(made))
  if more:
    raise TheoryError(
        f'the model has parameters that are neither weights nor biases of its layers: '
        f'{", ".join(more)}. What they do is not homogeneous in the layers\' outputs, and weights '
        f'are not certain to stay aligned. Leave normalisation out. {_OTHERWISE}')
  degrees = _degrees(model, plain(layered), values, sample)
  weights, biases = ([op.path for op in ops], [''.join(op.seen_bias.paths) for op in ops])
  start = flows.aligned([params[path] for path in weights], [params.get(path) for path in biases],
                        degrees)
  return {path: value for path, value in zip([*weights, *biases], [*start.weights, *start.biases])
          if value is not None}


def _linear(layered: Layered, op: SeenOp, w: Array) -> bool:
  """Whether an op's weight is a linear function of its one parameter; tried on two values."""
  made = Made(layered.traced.network.frame, op.weight)
  draw = np.random.RandomState(1).standard_normal
  a, b = (jnp.asarray(draw(w.shape), w.dtype) for _ in range(2))
  of = jax.jit(lambda a: made([a]))
  return not made.nodes or bool(distance(of(a + b), of(a) + of(b)) < TOLERANCE)


def _degrees(model: Model, layered: Layered, values: Values, sample: PyTree) -> list[float]:
  """The degree k of what lies between each layer of a chain and the next.

  Parameters of zero make each layer put out what is added to it: random activities z, in the
  directions u z, with another number u for each layer. The next layer's input a then moves by
  k u a if it is a homogeneous function of z alone (Euler), and the output by the last layer's z.
  """
  ops, draw = layered.traced.network.ops, np.random.RandomState(0)
  named, last = labels(ops), len(ops) - 1
  output, _ = layered.locate(layered.traced.out)
  z = {op.number: jnp.asarray(draw.standard_normal(op.y_aval.shape), op.y_aval.dtype)
       for op in ops}
  u = {**dict(enumerate(draw.uniform(1, 3, len(ops)))), last: 0.0}

  @jax.jit
  def tried(values, inputs, z):
    run = lambda z: model.run(layered, values, inputs, z)
    moves = {number: of * jnp.asarray(u[number], of.dtype) for number, of in z.items()}
    (_, seen), (moved, by) = jax.jvp(run, (z,), (moves,))
    found = []
    for number in range(last):
      a, da = (of[number + 1].astype(np.promote_types(of[number + 1].dtype, np.float32))
               for of in (seen, by))
      da = da / jnp.asarray(u[number], da.dtype)
      k = jnp.vdot(a, da) / jnp.vdot(a, a)
      found.append((k, distance(da, k * a)))
    return found, jnp.max(jnp.abs(moved[output]), initial=0)

  zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
  found, moved = tried(values._replace(params=zeros(values.params)), zeros(sample), z)
  for number, (k, off) in enumerate(found):
    if not (k > TOLERANCE and off < TOLERANCE):
      raise TheoryError(
          f'the input of the layer {named[number + 1]!r} is no homogeneous function of the output '
          f'of the layer {named[number]!r} alone: between them is a nonlinearity such as tanh, '
          f'normalisation, or another path. Their weights are not certain to stay aligned: choose '
          f'activation=\'relu\' and no residual paths. {_OTHERWISE}')
  if moved > 0:
    raise TheoryError(
        f'the model\'s output depends on more than its last layer {named[last]!r}, so that errors '
        f'reach others by another path than through its feedback, and weights are not certain to '
        f'stay aligned. {_OTHERWISE}')
  return [float(k) for k, _ in found]


def _name(path: str) -> str:
  return path.rpartition('/')[2]


def _beside(path: str) -> str:
  """Where linen's feedback lies that is kept beside its weight."""
  return f'{path.removesuffix(_name(path))}{FEEDBACK}_{_name(path)}'


def _written_linen(variables: Mapping[str, Any], values: Mapping[str, Array]) -> Any:
  """The variables with these values, by collection and path; boxes of metadata stay."""

  def one(at, leaf):
    path = '/'.join(key.key for key in at if isinstance(key, jax.tree_util.DictKey))
    return jnp.array(values[path], leaf.dtype) if path in values else leaf

  return jax.tree_util.tree_map_with_path(one, variables)


def _write_nnx(model: nnx.Module, params: Mapping[str, Array],
               feedback: Mapping[str, Array]) -> nnx.Module:
  own = {'/'.join(map(str, path)): node for path, node in nnx.iter_graph(model, graph=True)}
  kept = {'/'.join(keys): variable for keys, variable in stored(model).items()}
  for variables, values in ((own, params), (kept, feedback)):
    for path, value in values.items():
      variables[path].set_value(jnp.array(value, variables[path].dtype))
  return model
