"""NNX layers with a rule behind them: subclasses that `install` swaps a layer's class for.

A plugged layer's class is a subclass of its own class, made once for each. Its `__call__` turns the
layer into an op and runs it by the rule of its `Plan`, which is static: it is part of the graphdef,
so that `nnx.jit` never mistakes one rule's trace for another's.
"""
import contextvars
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError

from bioprop.errors import FeedbackMissingError, LiftedTransformError, UnsupportedLayerError
from bioprop.plug import activity
from bioprop.plug.marks import mark_input, mark_output, mark_weights, wanted
from bioprop.plug.nnx_kinds import Kind, kind_of
from bioprop.plug.unbound import without_gradient
from bioprop.rules import AnyRule, NetworkRule, Op, Rule
from bioprop.rules.credit import assign
from bioprop.typing import Array, Params

PLAN = '_bioprop_plan'  # The attribute of a plugged layer that holds its Plan.
PORT, STREAM = 'feedback_port', 'feedback_stream'  # Attributes of layers whose rules need them.


class Feedback(nnx.Variable):
  """Frozen feedback of a layer: no parameter, so that no optimiser moves or decays it."""


class Port(Feedback):
  """Where a layer leaves the port that brings it the error; empty but while the model runs."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a plugged layer is to do.

  Attributes:
    path: the layer's path in the model, such as 'blocks/0/linear'.
    rule: how it assigns credit.
    feedback: (op, name, attribute) of each of its feedback arrays.
    phi: the names of the nonlinearities after its ops, which stand for `activations`.
    readouts: those of its ops that are readouts, for rules that need them.
    auxiliaries: those that reach another of the model's outputs so.
    activations: the nonlinearity after each of its ops, for rules that need it.
    watch: a number for each run of `install`'s watcher, which no cached trace may serve.
  """
  path: str
  rule: AnyRule
  feedback: tuple[tuple[str, str, str], ...] = ()
  phi: tuple[str, ...] = ()
  readouts: tuple[str, ...] = ()
  auxiliaries: tuple[str, ...] = ()
  activations: Mapping[str, activity.Activation] = dataclasses.field(
      default_factory=dict, compare=False)
  watch: int = 0


@dataclasses.dataclass
class Watcher:
  """Notes what reaches each op while a model runs by no rule.

  Attributes:
    inputs: shape and dtype of each op's input, by (path, op).
    labels: the path and the name of each op, by its label in the jaxpr.
  """
  inputs: dict[tuple[str, str], jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
  labels: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


watching: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar('watching', default=None)
# Whether a model runs as a whole, so that its NetworkRule sees what every layer computes.
running: contextvars.ContextVar[bool] = contextvars.ContextVar('running', default=False)
# Plans of the layers whose ops ran, for each call of an override that is under way.
_overrides: contextvars.ContextVar[tuple[set[Plan], ...]] = contextvars.ContextVar(
    'overrides', default=())
_reached: set[tuple[str, nnx.GraphDef, str]] = set()  # Calls of overrides that reached their ops.


def ops_of(kind: Kind) -> dict[str, tuple[str, ...]]:
  """The weights of each op of a layer; only nnx.LoRA has two."""
  if kind.layer is nnx.LoRA:
    return {name: (name,) for name in kind.weights}
  return {'': kind.weights}


@functools.cache
def plugged_class(plain: type[nnx.Module]) -> type[nnx.Module]:
  """The class that replaces `plain`, whose objects must have a Plan."""
  kind = kind_of(plain)
  mixin = _mixin(kind)
  # Between a user's class and the Flax layer that it extends: super().__call__ is then the op.
  bases = (mixin,) if plain is kind.layer else (plain, mixin)
  body = {'_bioprop_plain': plain}
  for name in kind.methods:  # Each in the class's own namespace, where nnx.capture looks for them.
    overridden = getattr(plain, name) is not getattr(kind.layer, name)
    body[name] = _checked(getattr(plain, name), kind) if overridden else getattr(mixin, name)
  return subclass(plain, bases, body)


def subclass(plain: type, bases: tuple[type, ...], body: dict[str, Any]) -> type:
  """A class that shows itself as `plain`, with the names of `body` besides."""
  names = {'__module__': plain.__module__, '__qualname__': plain.__qualname__,
           '__doc__': plain.__doc__, **body}
  return types.new_class(plain.__name__, bases, {'pytree': plain._pytree__is_pytree},
                         lambda namespace: namespace.update(names))


@functools.cache
def _mixin(kind: Kind) -> type[nnx.Module]:
  if kind.layer is nnx.LoRA:
    body = {'__call__': _call_lora}
  else:
    body = {name: _as_op(kind, getattr(kind.layer, name)) for name in kind.methods}
  return subclass(kind.layer, (kind.layer,), body)


def params_of(layer: nnx.Module, kind: Kind) -> dict[str, Array]:
  """The layer's own parameters by name."""
  names = (*kind.weights, 'bias')
  return {name: getattr(layer, name)[...] for name in names
          if isinstance(getattr(layer, name, None), nnx.Variable)}


def op_function(layer: nnx.Module, kind: Kind, op_name: str) -> Callable[[Params, Array], Array]:
  """The op of a layer as it is called without options."""
  if kind.layer is nnx.LoRA:
    return lambda params, x: x @ params[op_name].astype(x.dtype)
  bare = _holding(layer, {})
  return lambda params, x: kind.layer.__call__(_holding(bare, params), x)


def _as_op(kind: Kind, method: Callable[..., Array]) -> Callable[..., Array]:
  signature = inspect.signature(method)

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    (_, _), (input_name, x), *rest = signature.bind(self, *args, **kwargs).arguments.items()
    options = dict(rest)

    bare, params = _holding(self, {}), params_of(self, kind)
    mask = vars(self).get('mask')
    if isinstance(mask, jax.Array):  # A convolution's; in a stack, of the trace of one layer.
      exact = jnp.issubdtype(mask.dtype, jnp.inexact)
      params['mask'] = mask if exact else mask.astype(params[kind.weights[0]].dtype)

    def function(params: Params, x: Array) -> Array:
      return method(_holding(bare, params), **{input_name: x}, **options)

    use = '.attend' if method is nnx.Embed.attend else ''
    return _run(self, '', function, kind.weights, params, jnp.asarray(x), use)

  return call


def _call_lora(self, x, **kwargs):
  """nnx.LoRA.__call__, with each of its two products an op."""
  kind = kind_of(nnx.LoRA)
  params = params_of(self, kind)
  x = self.promote_dtype((x, *params.values()), dtype=self.dtype)[0]  # The ops cast the weights.
  out = x
  for name, value in params.items():
    out = _run(self, name, op_function(self, kind, name), (name,), {name: value}, out)
  if self.base_module is not None:
    out += self.base_module(x, **kwargs)
  return out


def _run(layer, op_name, function, weights, params: Params, x: Array, use: str = '') -> Array:
  """Runs one op of a plugged layer by the rule of its plan; `use` tells its methods apart."""
  plan: Plan = getattr(layer, PLAN)
  for ran in _overrides.get():
    ran.add(plan)
  name = op_name + use
  op = Op(function, weights, plan.activations.get(name), name in plan.readouts,
          name in plan.auxiliaries)
  watcher = watching.get()
  if watcher is not None:
    return _watch(watcher, plan, op_name, use, op, params, x)
  rule, port, ready = plan.rule, None, True
  at = label((plan.path, op_name)) + use
  if isinstance(rule, NetworkRule):
    if not running.get():
      return without_gradient(op(params, x), _unbound(plan))
    return mark_output(op(params, mark_input(x, at)), at) if wanted() else op(params, x)
  if rule.reads_error:
    filled = getattr(layer, PORT)[...]
    ready = filled.shape[-1] != 0
    if not ready and filled.ndim > 1:
      raise LiftedTransformError(_unsplit(plan, 'an error port', 'bioprop.Feedback'))
    port = jnp.zeros(filled.shape, filled.dtype)
  key = None
  if rule.redraws:
    if getattr(layer, STREAM).key.shape:
      raise LiftedTransformError(_unsplit(plan, 'a random stream', "'feedback'"))
    try:
      key = getattr(layer, STREAM)()
    except TraceContextError:  # A model that a jitted function closes over: no gradient is asked.
      ready = False
  if not ready:
    return without_gradient(op(params, x), _unbound(plan))
  feedback = _feedback(layer, plan, op_name, params, x)
  if rule.redraws:
    feedback = {**(feedback or {}), 'key': key}
  x = mark_input(x, at) if wanted() else x
  y, port = assign(rule, op, params, x, feedback, port)
  y = mark_output(y, at) if wanted() else y
  if port is not None:
    _leave(layer, plan, filled + port)
  return y


def _watch(watcher, plan, op_name, use, op, params, x) -> Array:
  at = (plan.path, op_name)
  known = watcher.inputs.get(at)
  # A tied embedding reads tokens first, which take no feedback, and activities later.
  if known is None or not jnp.issubdtype(known.dtype, jnp.inexact):
    watcher.inputs[at] = jax.ShapeDtypeStruct(x.shape, x.dtype)
  name = label(at) + use
  watcher.labels[name] = (plan.path, op_name + use)
  y = op(mark_weights(params, op.weights, plan.path), mark_input(x, name))
  return mark_output(y, name)


def label(at: tuple[str, str]) -> str:
  """The name of an op: its layer's path, and its own name where the layer has several."""
  return '/'.join(filter(None, at))


def _feedback(layer, plan: Plan, op_name: str, params: Params, x: Array) -> dict[str, Array] | None:
  """The op's feedback by name, None if it has none."""
  found = {name: getattr(layer, attribute)[...] for op, name, attribute in plan.feedback
           if op == op_name}
  for name, value in found.items():
    if name in params and value.shape != params[name].shape:
      raise LiftedTransformError(
          _unsplit(plan, f'feedback of shape {value.shape}', 'bioprop.Feedback'))
  if not found and jnp.issubdtype(x.dtype, jnp.inexact) and has_feedback(plan.rule):
    raise FeedbackMissingError(
        f'the layer {plan.path!r} has no feedback, because it was not called when the model ran on '
        f'the sample that install was given (or was given token ids there, and activities now). '
        f'Give install a sample, and the arguments, with which the model calls all its layers: '
        f'bioprop.install(model, rule, rngs, x, train=True).')
  return found or None


def has_feedback(rule: Rule) -> bool:
  """Whether the rule keeps feedback."""
  return type(rule).init_feedback is not Rule.init_feedback


def _leave(layer, plan: Plan, port: Array) -> None:
  try:
    getattr(layer, PORT).set_value(port)
  except TraceContextError:
    raise LiftedTransformError(
        f'the error at the network\'s output cannot reach the layer {plan.path!r}: it is called '
        f'inside a transform of JAX\'s own (jax.checkpoint, jax.lax.scan, jax.vmap, ...), which '
        f'the layer\'s state cannot leave. Use Flax\'s (nnx.remat, nnx.scan, nnx.vmap), or a rule '
        f'that needs no broadcast, such as \'fa\'.') from None


def _holding(layer: nnx.Module, params: Params) -> nnx.Module:
  """The layer with values in place of its parameters, and with no other state.

  JAX keeps an op's function beside the programs that contain it: state there would be kept too.
  """
  copy = object.__new__(type(layer))
  vars(copy).update({name: value for name, value in vars(layer).items()
                     if not isinstance(value, (nnx.Variable, nnx.RngStream))})
  vars(copy).update({name: value if name == 'mask' else nnx.Variable(value)
                     for name, value in params.items()})
  return copy


def _checked(method, kind: Kind):
  """A user's override of a layer's method, which must reach the layer's own."""

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    plan, ran = getattr(self, PLAN), set()
    token = _overrides.set((*_overrides.get(), ran))
    try:
      out = method(self, *args, **kwargs)
    finally:
      _overrides.reset(token)
    flags = [leaf for leaf in jax.tree.leaves((args, kwargs)) if not hasattr(leaf, 'shape')]
    at = method.__name__, nnx.graphdef(self, graph=True), repr(flags)
    if plan in ran:
      _reached.add(at)
    # It has if an nnx.jit inside serves a trace of an earlier call; a NetworkRule sees every way.
    elif at not in _reached and not running.get():
      raise UnsupportedLayerError(
          f'{type(self).__name__} extends nnx.{kind.name} and overrides {method.__name__} without '
          f'calling super().{method.__name__}, so no rule can act on its weights, and they would '
          f'silently learn by backprop. Call super().{method.__name__}(x) there, or leave the '
          f'layer out: bioprop.install(model, {{{plan.path!r}: \'bp\', '
          f'\'*\': ...}}, rngs).')
    return out

  return call


def _unsplit(plan: Plan, what: str, state: str) -> str:
  return (
      f'the layer {plan.path!r} sees a weight of its own, and {what} for all the layers of its '
      f'stack: it lies in an nnx.scan or nnx.vmap that splits the parameters alone. Name both '
      f'where the model says nnx.StateAxes: nnx.StateAxes({{(nnx.Param, {state}): 0, ...: None}}).')


def _unbound(plan: Plan) -> str:
  return (
      f'a gradient was asked of the layer {plan.path!r}, which {type(plan.rule).__name__} cannot '
      f'give: the layer was called outside the model\'s own __call__, or the model was closed over '
      f'by a transformed function. Call the model that install was given, and pass it as an '
      f'argument, as in nnx.grad(loss)(model), or copy its state there: '
      f'nnx.merge(graphdef, params, rest, copy=True).')
