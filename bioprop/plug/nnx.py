"""install: an NNX model whose weights learn by another rule, in place."""
import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from bioprop.errors import FeedbackMissingError, NothingMatchedError, UnsupportedLayerError
from bioprop.plug import nnx_run, nnx_whole
from bioprop.plug.choice import choose
from bioprop.plug.nnx_kinds import Kind, kind_of
from bioprop.plug.nnx_layer import (
  PLAN,
  PORT,
  STREAM,
  Feedback,
  Plan,
  Port,
  has_feedback,
  op_function,
  ops_of,
  params_of,
  plugged_class,
)
from bioprop.plug.nnx_run import OUTPUT, Sample, root_class
from bioprop.plug.output import Where
from bioprop.rules import AnyRule, Op, Rule, Site, make
from bioprop.typing import Array, Key

Path = tuple[Any, ...]


def install(
    model: nnx.Module,
    rule: AnyRule | str | Mapping[str, AnyRule | str],
    rngs: nnx.Rngs | int | Key | None = None,
    *sample: Any,
    output: Where = None,
    **kwargs: Any,
) -> nnx.Module:
  """Plugs a learning rule into an NNX model, in place.

  The layers' classes are swapped for subclasses of their own: paths and values of the parameters,
  the forward pass (but under `gln`), `isinstance`, `nnx.split` and `nnx.merge` stay as they are;
  gradients are the rule's pseudogradients. Frozen feedback is made beside each weight,
  `layer.feedback_kernel` beside `layer.kernel`, as a `Feedback` variable; under `kp` and `mirror`,
  whose feedback learns, as a parameter of the weight's own type: make the optimiser after install.
  Rules of the whole network keep theirs in `model.feedback_network`. A rule that was installed
  before is taken out first.

  NNX layers forget their initialisers, so fresh feedback is drawn from N(0, rms(W)^2), rms(W) the
  weight's root mean square at this moment (LeCun's where a weight is constant).

  Args:
    model: an NNX module; it is changed.
    rule: a rule, its name, or a mapping from path patterns to either, first match first, as in
      {'conv*': 'fa', '*': 'dfa'}. A layer's path is its attributes' names, as in 'blocks/0/linear'.
    rngs: where feedback is drawn from: its stream 'feedback', or 'default'; a seed or a key
      will do. None for rules that draw none.
    *sample: the model's inputs, one batch, arrays or `jax.ShapeDtypeStruct`s. Rules that broadcast
      the error (dfa, hebb) need them: feedback has the shape of the layer's input and the model's
      output. Nothing is computed on them.
    output: which of the model's outputs carries the error, as in `wrap`.
    **kwargs: the model's keyword arguments on the sample, such as train=True.

  Returns:
    The model itself.

  Raises:
    UnknownRuleError, RuleOptionError, PatternError: if `rule` cannot be read.
    NothingMatchedError: if no layer of the model is covered.
    FeedbackMissingError: if the rule needs a sample or rngs, and there are none.
    OutputError: if the rule broadcasts the error and the model's output is not one array.
    UnsupportedLayerError: if the rule cannot act on a layer.
    TypeError: if `model` is not an NNX module.
  """
  if not isinstance(model, nnx.Module):
    raise TypeError(
        f'bioprop.install takes an nnx.Module, and got {model!r}. Give it the model itself, as in '
        f'bioprop.install(model, \'fa\', nnx.Rngs(0)); for flax.linen it is bioprop.wrap.')
  choice = choose(rule)
  uninstall(model)
  layers = list(_layers(model))
  if choice.network is not None:
    draw = _Draws(rngs if rngs is not None or choice.network.needs_sample else 0)
    named = [('/'.join(map(str, path)), layer) for path, layer, _ in layers]
    nnx_whole.plug(model, named, choice.network, lambda: draw.key, sample, kwargs)
    return model
  if not layers:
    raise NothingMatchedError(
        f'{type(model).__name__} holds no layer that a learning rule could apply to, so it would '
        f'silently learn by backprop. Known layers: nnx.Linear, LinearGeneral, Conv, '
        f'ConvTranspose, Einsum, Embed, LoRA, and what is made of them (attention, recurrent '
        f'cells). Weights kept in nnx.Param by themselves belong in one of these layers.')
  names = ['/'.join(map(str, path)) for path, _, _ in layers]
  todo = [(name, layer, kind, choice.rule_for(name))
          for name, (_, layer, kind) in zip(names, layers)]
  choice.check_used(names)
  todo = [row for row in todo if not row[3].exact]
  _refuse_learning_below_norms(model, layers, todo)
  _refuse_learning_shared(todo)
  draw = _Draws(rngs)
  seen = nnx_run.watch(model, [(layer, name, rule) for name, layer, _, rule in todo],
                       Sample(sample, kwargs), output)
  try:
    for name, layer, kind, rule in todo:
      _plug(layer, kind, Plan(name, rule), draw, seen)
  except BaseException:
    uninstall(model)  # Not half a rule.
    raise
  if any(rule.reads_error for _, _, _, rule in todo):
    _swap(model, root_class(type(model)))
    setattr(model, OUTPUT, output)
  return model


def uninstall(model: nnx.Module) -> nnx.Module:
  """Takes a rule out of an NNX model: its classes and variables are what they were before install.

  Args:
    model: an NNX module; one without a rule stays as it is.

  Returns:
    The model itself.
  """
  for _, module in _modules(model):
    plan = getattr(module, PLAN, None)
    if nnx_whole.RULE in vars(module):
      delattr(module, nnx_whole.RULE)
      delattr(module, nnx_whole.FEEDBACK)
    ours = {PLAN, PORT, STREAM, OUTPUT, *(row[2] for row in plan.feedback if plan)} if plan else {
        OUTPUT}
    for name in ours & set(vars(module)):
      delattr(module, name)
    if hasattr(type(module), '_bioprop_plain'):
      _swap(module, type(module)._bioprop_plain)
  return model


def marked_jaxpr(model: nnx.Module, sample: tuple[Any, ...],
                 kwargs: Mapping[str, Any]) -> core.ClosedJaxpr:
  """A model's jaxpr with its ops marked; nothing is computed, and the model stays as it is.

  Args:
    model: an NNX module, plain or plugged.
    sample: its inputs, arrays or `jax.ShapeDtypeStruct`s.
    kwargs: its keyword arguments.
  """
  plain = uninstall(nnx.clone(model))
  return nnx_run.trace(plain, watchable(plain), Sample(sample, kwargs))[0]


def watchable(model: nnx.Module) -> list[tuple[nnx.Module, str, Rule]]:
  """The layers of a model without a rule, their paths, and a rule that leads to their marks."""
  return [(layer, '/'.join(map(str, path)), make('fa')) for path, layer, _ in _layers(model)]


def _plug(layer, kind: Kind, plan: Plan, draw: '_Draws', seen: 'nnx_run.Seen') -> None:
  """Gives one layer its feedback, its plan and its class."""
  rule, rows, made = plan.rule, [], {}
  stack = getattr(layer, kind.weights[0]).shape[:-kind.ndim(layer)]
  if has_feedback(rule):
    for op, weights in ops_of(kind).items():
      x = seen.inputs.get((plan.path, op))
      if seen.ran and x is None:
        continue  # A layer that the model does not call: it says so if it is called after all.
      for name, value in _feedback(
          layer, kind, plan, op, weights, x, stack, draw, seen).items():
        attribute = f'feedback_{name}' if name in weights or not op else f'feedback_{op}_{name}'
        rows.append((op, name, attribute))
        made[attribute] = _variable(layer, name, value, rule)
  plan = dataclasses.replace(plan, feedback=tuple(rows), **seen.after(plan.path))
  for attribute, variable in made.items():
    setattr(layer, attribute, variable)
  if rule.reads_error:
    setattr(layer, PORT, Port(jnp.zeros((*stack, 0), seen.error.dtype)))
  if rule.redraws:
    setattr(layer, STREAM, nnx.RngStream(draw.keys(plan, stack), tag='feedback'))
  setattr(layer, PLAN, plan)
  _swap(layer, plugged_class(type(layer)))


def _feedback(layer, kind, plan, op, weights, x, stack, draw, seen) -> dict[str, Array]:
  """Feedback of one op; of a stack of layers, one for each."""

  def make(key: Key, params: dict[str, Array]) -> dict[str, Array]:
    redraw = lambda key: {name: _fresh(jax.random.fold_in(key, zlib.crc32(name.encode())),
                                       params[name]) for name in weights}
    at = f'{plan.path}/{op}' if op else plan.path
    pure = Op(op_function(layer, kind, op), weights)
    return plan.rule.init_feedback(key, Site(at, pure, params, redraw, x, seen.error)) or {}

  for _ in stack:
    make = jax.vmap(make)
  params = {name: value for name, value in params_of(layer, kind).items()
            if name in (*weights, 'bias')}
  return make(draw.keys(plan, stack, op), params)


@jax.jit  # One program for each shape, and not one for each operation on it.
def _fresh(key: Key, w: Array) -> Array:
  """An independent draw as large as w: NNX layers do not keep their initialisers."""
  fan_in = max(1, w.size // w.shape[-1])
  rms = jnp.sqrt(jnp.mean(jnp.square(w)))
  lecun = jnp.asarray(fan_in**-0.5, w.dtype)  # Feedback like constant weights would carry no error.
  size = jnp.where(jnp.max(w) == jnp.min(w), lecun, rms)
  return size * jax.random.normal(key, w.shape, w.dtype)


def _variable(layer, name: str, value: Array, rule: Rule) -> nnx.Variable:
  """A variable for feedback, placed and annotated as the weight of its shape is."""
  weight = getattr(layer, name, None)
  if not isinstance(weight, nnx.Variable):
    return Feedback(value)
  sharding = getattr(weight[...], 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding) and not isinstance(value, jax.core.Tracer):
    value = jax.device_put(value, sharding)
  metadata = {key: weight.get_metadata(key) for key in ('out_sharding', 'sharding_rules', 'mesh')
              if weight.has_metadata(key)}
  return (type(weight) if rule.learns else Feedback)(value, **metadata)


class _Draws:
  """Keys for the layers' feedback, made when the first is asked for."""

  def __init__(self, rngs: nnx.Rngs | int | Key | None):
    self._rngs = rngs

  @functools.cached_property
  def key(self) -> Key:
    if self._rngs is None:
      raise FeedbackMissingError(
          'this rule draws feedback weights at random, and install was given no rngs. Give it '
          'some: bioprop.install(model, rule, nnx.Rngs(0)).')
    if not isinstance(self._rngs, nnx.Rngs):
      return nnx.Rngs(self._rngs)['feedback']()
    if 'feedback' not in self._rngs and 'default' not in self._rngs:
      raise FeedbackMissingError(
          f'feedback is drawn from the stream \'feedback\' of the rngs, or from \'default\', and '
          f'they have only {sorted(self._rngs)}. Give install others: '
          f'bioprop.install(model, rule, nnx.Rngs(feedback=0)).')
    return self._rngs['feedback']()

  def keys(self, plan: Plan, stack: tuple[int, ...], op: str = '') -> Key:
    """A key for an op of a layer, or one for each layer of a stack."""
    key = jax.random.fold_in(self.key, zlib.crc32(f'{plan.path}:{op}'.encode()))
    return jax.random.split(key, stack) if stack else key


def _modules(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
  """Every module of the model once, by path, as one list that a change does not disturb."""
  return iter([(path, node) for path, node in nnx.iter_graph(model, graph=True)
               if isinstance(node, nnx.Module)])


def _layers(model: nnx.Module) -> Iterator[tuple[Path, nnx.Module, Kind]]:
  for path, module in sorted(_modules(model), key=lambda row: tuple(map(str, row[0]))):
    kind = kind_of(type(module))
    if kind is not None and isinstance(getattr(module, kind.weights[0], None), nnx.Variable):
      yield path, module, kind


def _swap(module: nnx.Module, cls: type) -> None:
  # Around NNX's own __setattr__, which would take '__class__' for one of the module's attributes.
  object.__setattr__(module, '__class__', cls)


def _refuse_learning_shared(todo) -> None:
  owners: dict[int, str] = {}
  for name, layer, kind, rule in todo:
    for weight in (getattr(layer, weight, None) for weight in kind.weights if rule.learns):
      if weight is not None and owners.setdefault(id(weight), name) != name:
        raise UnsupportedLayerError(
            f'the layers {owners[id(weight)]!r} and {name!r} share one parameter, and '
            f'{type(rule).__name__} keeps feedback that learns beside each layer: it would get the '
            f'update of its own layer alone, and never align. Choose a rule with frozen feedback '
            f'for one of them: bioprop.install(model, {{{name!r}: \'fa\', \'*\': ...}}, rngs).')


def _refuse_learning_below_norms(model, layers, todo) -> None:
  learning = {id(layer) for _, layer, _, rule in todo if rule.learns}
  norms = [path for path, module in _modules(model) if isinstance(module, nnx.SpectralNorm)]
  for path, layer, _ in layers:
    if id(layer) in learning and any(path[:len(norm)] == norm for norm in norms):
      name = '/'.join(map(str, path))
      raise UnsupportedLayerError(
          f'the layer {name!r} is wrapped in nnx.SpectralNorm, which takes every parameter that it '
          f'finds there for one of the layer\'s own, so that learned feedback cannot live beside '
          f'them. Choose a rule with frozen feedback for it: bioprop.install(model, '
          f'{{{name!r}: \'fa\', \'*\': ...}}, rngs).')
