"""install: an NNX model whose weights learn by another rule, in place."""
import copyreg
import dataclasses
import functools
import inspect
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioprop.errors import (
  FeedbackMissingError,
  NothingMatchedError,
  OutputError,
  PluggedError,
  UnsupportedLayerError,
)
from bioprop.network.feedback import init_unseen
from bioprop.plug.arguments import split
from bioprop.plug.choice import choose
from bioprop.plug.function import (
  FEEDBACK,
  Call,
  Keys,
  Plug,
  Store,
  is_traced,
  nested,
  own_forward,
  redrawn,
)
from bioprop.plug.linen import without_gradient
from bioprop.plug.output import Where
from bioprop.rules import AnyRule
from bioprop.typing import Array, Key, PyTree

# Attributes of a plugged model: its Plug, its frozen feedback by path, its own random stream, and
# the paths of the weights beside which feedback is kept that learns.
PLUG, STORE, STREAM, LEARNED = (
    'bioprop_plug', 'bioprop_feedback', 'bioprop_stream', 'bioprop_learned')
_ABSENT = object()


class Feedback(nnx.Variable):
  """Frozen feedback: no parameter, so that no optimiser moves or decays it."""


def install(
    model: nnx.Module,
    rule: AnyRule | str | Mapping[str, AnyRule | str],
    rngs: nnx.Rngs | int | Key | None = _ABSENT,
    /,
    *sample: Any,
    output: Where = None,
    **kwargs: Any,
) -> nnx.Module:
  """Plugs a learning rule into an NNX model, in place.

  The model's class is swapped for a subclass of its own, whose `__call__` and other public methods
  run by the rule where gradients are taken: paths and values of the parameters, the forward pass
  (but under `gln`), `isinstance`, `nnx.split` and `nnx.merge` stay as they are. Frozen feedback is
  kept by path in `model.bioprop_feedback`, as `Feedback` variables; feedback that learns (`kp`,
  `mirror`) beside its weight, `layer.feedback_kernel` beside `layer.kernel`, as a parameter of the
  weight's own type: make the optimiser after install. A gradient that is asked of a layer outside
  of the model's own methods is refused.

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
    NothingMatchedError: if no parameter meets data in a product.
    FeedbackMissingError: if the rule needs a sample or rngs, and there are none.
    OutputError: if the rule broadcasts the error and the model's output is not one array.
    UnsupportedLayerError: if a parameter meets data in a product where no rule can act.
    PluggedError: if the model has another rule already.
    TypeError: if `model` is not an NNX module.
  """
  if not isinstance(model, nnx.Module):
    raise TypeError(
        f'bioprop.install takes an nnx.Module, and got {model!r}. Give it the model itself, as in '
        f'bioprop.install(model, \'fa\', nnx.Rngs(0)); for flax.linen it is bioprop.wrap.')
  if rngs is _ABSENT:  # By its name it would be taken for the model's own argument.
    rngs = kwargs.pop('rngs', None)
  plug = Plug(choose(rule), output)
  for path, module in _modules(model):
    if PLUG in vars(module):
      raise PluggedError(
          f'the model{"" if not path else f" at {_name(path)!r}"} learns by '
          f'{getattr(module, PLUG).choice} already, and two rules cannot both act on its weights. '
          f'Take that out first: bioprop.uninstall(model); or mix rules in one choice: '
          f'{{\'conv*\': \'fa\', \'*\': \'dfa\'}}.')
  if plug.choice.exact:
    _require_parameters(model)
    return model
  store, stream = _made(model, plug, _Draws(rngs), sample, kwargs)
  _keep(model, plug, store)
  if stream is not None:
    setattr(model, STREAM, stream)
  setattr(model, PLUG, plug)
  for path, module in _modules(model):
    _swap(module, _class_of(type(module), 'root' if not path else 'part'))
  return model


def uninstall(model: nnx.Module) -> nnx.Module:
  """Takes a rule out of an NNX model: its classes and variables are what they were before install.

  Args:
    model: an NNX module; one without a rule stays as it is.

  Returns:
    The model itself.
  """
  for path in vars(model).get(LEARNED, ()):
    owner, name = _beside(model, path)
    delattr(owner, name)
  for _, module in _modules(model):
    for name in {PLUG, STORE, STREAM, LEARNED} & set(vars(module)):
      delattr(module, name)
    if hasattr(type(module), '_bioprop_plain'):
      _swap(module, type(module)._bioprop_plain)
  return model


def call_of(model: nnx.Module, method: Callable[..., Any], args: tuple[Any, ...],
            kwargs: Mapping[str, Any]) -> Call:
  """A call of a model, plain or plugged, as a function of its parameters by path.

  The model that runs is a copy without its rule; NNX objects among the arguments are copied too.
  The state that the function returns is what the call changed, by path.
  """
  arrays, nodes, rebuild = split(args, kwargs)
  learned = {_feedback_path(path) for path in vars(model).get(LEARNED, ())}
  is_parameter = lambda path, variable: isinstance(variable, nnx.Param) and (
      path[0] == 0 and tuple(map(str, path[1:])) not in learned)
  graphdef, params, rest = nnx.split((model, nodes), is_parameter, ..., graph=True)
  variables = _named(params)

  def function(params, held, arrays):
    state = nnx.from_flat_state([(path, variable.replace(params[name]))
                                 for name, (path, variable) in variables.items()])
    copy, others = nnx.merge(graphdef, state, held, copy=True)
    uninstall(copy)
    before = {path: variable.get_raw_value() for path, variable in _state((copy, others))}
    args, kwargs = rebuild({**others, **arrays})
    out = method(copy, *args, **kwargs)
    changed = {path: variable for path, variable in _state((copy, others))
               if variable.get_raw_value() is not before.get(path)}
    return out, nnx.from_flat_state(changed)

  values = {name: variable.get_raw_value() for name, (_, variable) in variables.items()}
  keys = {name: tuple(map(str, path[1:])) for name, (path, _) in variables.items()}
  return Call(type(model).__name__, function, values, keys, rest, arrays)


def stored(model: nnx.Module) -> dict[Keys, nnx.Variable]:
  """The variables that hold the feedback of a plugged model, by its keys."""
  found = {path[1:]: variable for path, variable in nnx.iter_graph(model, graph=True)
           if isinstance(variable, nnx.Variable) and path and path[0] == STORE}
  for path in vars(model).get(LEARNED, ()):
    owner, name = _beside(model, path)
    found[path] = getattr(owner, name)
  return found


def _feedback_path(path: Keys) -> Keys:
  return (*path[:-1], f'{FEEDBACK}_{path[-1]}')


def _beside(model: nnx.Module, path: Keys) -> tuple[nnx.Module, str]:
  """The module that owns a weight, and the name of the feedback beside it."""
  owner = next(module for own, module in _modules(model) if tuple(map(str, own)) == path[:-1])
  return owner, f'{FEEDBACK}_{path[-1]}'


def _made(model, plug: Plug, draws: '_Draws', sample, kwargs):
  """The feedback of a model, and the stream that its rules draw from at each call."""
  rules = [rule for _, rule in plug.choice.rows]
  whole = plug.choice.network
  redraws = any(not whole and rule.redraws for rule in rules)
  given = bool(sample or kwargs)
  if not given and any(map(needs_sample, rules)):
    require_sample(plug)
  if (given or whole) and not callable(model):
    raise OutputError(
        f'install runs the model on its sample by calling it, and {type(model).__name__} has no '
        f'__call__. Give the model a method def __call__(self, x), or leave the sample out and '
        f'choose a rule that needs none: bioprop.install(model, \'fa\', rngs).')
  keeps = any(not rule.exact and rule.keeps_feedback for rule in rules)
  call = call_of(model, type(model).__call__ if callable(model) else None, sample, kwargs)
  if whole and not call.params:
    _require_parameters(model)
  draw = lambda key: redrawn(call.params, key)
  if given or whole:
    key = draws.key if keeps and (not whole or whole.needs_sample) else jax.random.key(0)
    store = plug.init(call, draw, key)
  else:
    store = init_without_sample(call, plug, draws.key if keeps else None)
  stream = nnx.RngStream(jax.random.fold_in(draws.key, 1), tag=FEEDBACK) if redraws else None
  return store, stream


def needs_sample(rule: AnyRule) -> bool:
  """Whether a rule's feedback depends on the shapes inside the network."""
  return getattr(rule, 'needs_sample', False) or getattr(rule, 'reads_error', False)


def require_sample(plug: Plug) -> None:
  """Raises FeedbackMissingError: there is no sample, and a rule needs one."""
  name = next(type(rule).__name__ for _, rule in plug.choice.rows if needs_sample(rule))
  raise FeedbackMissingError(
      f'{name} must know the shapes inside the network and of its output, and install was given no '
      f'sample of the model\'s input. Give it one batch, after the rngs, and the arguments with '
      f'which the model is called: bioprop.install(model, rule, rngs, x), or '
      f'bioprop.from_flags(model, x).')


def init_without_sample(call: Call, plug: Plug, key: Key | None) -> Store:
  """Feedback beside every matrix, of a model of which it is not known what it does with them."""
  rules = {path: plug.choice.rule_for(path) for path, w in call.params.items()
           if len(w.shape) >= 2 and jnp.issubdtype(w.dtype, jnp.inexact)}
  if not rules:
    raise NothingMatchedError(
        f'{call.name} holds no weight that a learning rule could apply to: it has no nnx.Param of '
        f'two axes. Give install a sample, so that it sees what the model does with those it has: '
        f'bioprop.install(model, rule, rngs, x).')
  plug.choice.check_used(list(rules))
  if key is None:
    return {}
  made = init_unseen(rules, call.params, lambda key: redrawn(call.params, key), key)
  return {call.keys[path]: value for path, value in made.items()}


def _keep(model: nnx.Module, plug: Plug, store: Store) -> None:
  """Keeps feedback in the model, placed and annotated as the weights that it is beside."""
  weights = {tuple(map(str, path)): variable for path, variable in nnx.iter_graph(model, graph=True)
             if isinstance(variable, nnx.Param)}

  def variable(keys: Keys, value: Array) -> nnx.Variable:
    weight = weights.get(keys[1:] if plug.choice.network else keys)
    if weight is None:
      return Feedback(value)
    sharding = getattr(weight.get_raw_value(), 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding) and not isinstance(value, jax.core.Tracer):
      value = jax.device_put(value, sharding)
    metadata = {key: weight.get_metadata(key) for key in ('out_sharding', 'sharding_rules', 'mesh')
                if weight.has_metadata(key)}
    learns = plug.choice.learns_at('/'.join(keys))
    return (type(weight) if learns else Feedback)(value, **metadata)

  beside = {tuple(map(str, path)): module for path, module in _modules(model)}
  learned = tuple(sorted(keys for keys in store if plug.choice.learns_at('/'.join(keys))))
  for keys in learned:
    if keys[:-1] not in beside:
      raise UnsupportedLayerError(
          f'the weight {"/".join(keys)!r} lies in a container and not in a module, so that '
          f'learned feedback cannot be kept beside it. Keep it in a module of its own, or choose a '
          f'rule with frozen feedback for it: {{{"/".join(keys)!r}: \'fa\', \'*\': ...}}.')
  made = {keys: variable(keys, value) for keys, value in store.items()}
  for keys in learned:
    setattr(beside[keys[:-1]], f'{FEEDBACK}_{keys[-1]}', made.pop(keys))
  if learned:
    setattr(model, LEARNED, learned)
  if made:
    setattr(model, STORE, nnx.data(nested(made)))


def _run(model: nnx.Module, method: Callable[..., Any], args, kwargs) -> Any:
  """A public method of a plugged model."""
  plug = getattr(model, PLUG)
  tracing = is_traced((args, kwargs)) or any(
      is_traced(variable.get_raw_value()) for _, variable in nnx.iter_graph(model, graph=True)
      if isinstance(variable, nnx.Variable))
  if not (tracing or own_forward(plug.choice)):
    return method(model, *args, **kwargs)
  key = None
  if STREAM in vars(model):
    key = getattr(model, STREAM)()
  call = call_of(model, method, args, kwargs)
  kept = {keys: variable.get_raw_value() for keys, variable in stored(model).items()}
  out, changed = plug.run(call, kept, key)
  _write((model, split(args, kwargs)[1]), changed)
  return out


def _write(target: PyTree, changed: nnx.State) -> None:
  """Writes what a call changed, and adds what it made (`sow`), to the model and the arguments."""
  known = dict(_state(target))
  for path, variable in nnx.to_flat_state(changed):
    if path in known:
      known[path].set_raw_value(variable.get_raw_value())
    else:
      node = target
      for key in path[:-1]:
        node = node[key] if isinstance(node, tuple | list | Mapping) else getattr(node, str(key))
      setattr(node, path[-1], variable)


def _class_of(plain: type[nnx.Module], role: str) -> type[nnx.Module]:
  """The plugged class of a module's class, one for each role, kept with it.

  A 'root' runs by its rule. A 'part' refuses gradients that are asked of it outside of the root.
  """
  plain = getattr(plain, '_bioprop_plain', plain)
  name = f'_bioprop_{role}'
  if name not in vars(plain):
    wrapped = _as_root if role == 'root' else _as_part
    body = {'__module__': plain.__module__, '__qualname__': plain.__qualname__,
            '__doc__': plain.__doc__, '_bioprop_plain': plain, '_bioprop_role': role,
            '__reduce_ex__': _reduce,
            **{method: wrapped(function) for method, function in _public(plain).items()}}
    cls = types.new_class(plain.__name__, (plain,), {'pytree': plain._pytree__is_pytree},
                          lambda namespace: namespace.update(body))
    setattr(plain, name, cls)
  return vars(plain)[name]


def _public(plain: type[nnx.Module]) -> dict[str, Callable[..., Any]]:
  """The public methods that a class and its parents add to nnx.Module's own."""
  found: dict[str, Any] = {}
  for cls in reversed(plain.__mro__):
    if not issubclass(nnx.Module, cls):
      found.update(vars(cls))
  return {name: value for name, value in found.items() if inspect.isfunction(value)
          and (name == '__call__' or not (name.startswith('_') or hasattr(nnx.Module, name)))}


def _as_root(method):

  @functools.wraps(method)
  def run(self, *args, **kwargs):
    return _run(self, method, args, kwargs)

  return run


def _as_part(method):

  @functools.wraps(method)
  def run(self, *args, **kwargs):
    return without_gradient(method(self, *args, **kwargs), (
        f'a gradient was asked of {type(self).__name__}.{method.__name__}, a part of a plugged '
        f'model that was called outside of the model\'s own methods, where its rule cannot act. '
        f'Call the model that install was given, or a method of it that calls this part.'))

  return run


def _reduce(self, protocol):
  """As the plain class is pickled and copied; the plugged class is made again."""
  made, (_, *rest), *state = super(type(self), self).__reduce_ex__(protocol)
  if made is not copyreg.__newobj__:
    raise TypeError(f'{type(self).__name__} pickles itself in a way of its own, which a plugged '
                    f'model cannot follow: bioprop.uninstall(model) first.')
  return _remake, (type(self)._bioprop_plain, type(self)._bioprop_role, *rest), *state


def _remake(plain: type[nnx.Module], role: str, *args: Any) -> nnx.Module:
  return object.__new__(_class_of(plain, role), *args)


def _modules(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Module]]:
  """Every module of the model once, by path, as one list that a change does not disturb."""
  return iter([(path, node) for path, node in nnx.iter_graph(model, graph=True)
               if isinstance(node, nnx.Module)])


def _swap(module: nnx.Module, cls: type) -> None:
  # Around NNX's own __setattr__, which would take '__class__' for one of the module's attributes.
  object.__setattr__(module, '__class__', cls)


def _state(node) -> list[tuple[tuple[Any, ...], nnx.Variable]]:
  """What a call may change: every variable but parameters and feedback, by path."""
  return list(nnx.to_flat_state(nnx.state(node, nnx.Not(nnx.Any(nnx.Param, Feedback)), graph=True)))


def _named(state: nnx.State) -> dict[str, tuple[tuple[Any, ...], nnx.Variable]]:
  """(path, variable) of a state of (model, nodes), by the name of the path in the model."""
  return {_name(path[1:]): (path, variable) for path, variable in nnx.to_flat_state(state)}


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(map(str, path))


def _require_parameters(model: nnx.Module) -> None:
  if not jax.tree.leaves(nnx.state(model, nnx.Param)):
    raise NothingMatchedError(
        f'{type(model).__name__} has no nnx.Param that a learning rule could apply to.')


@dataclasses.dataclass
class _Draws:
  """The key of a model's feedback, made when it is first asked for."""
  rngs: nnx.Rngs | int | Key | None

  @functools.cached_property
  def key(self) -> Key:
    if self.rngs is None:
      raise FeedbackMissingError(
          'this rule draws feedback weights at random, and install was given no rngs. Give it '
          'some: bioprop.install(model, rule, nnx.Rngs(0)).')
    rngs = self.rngs if isinstance(self.rngs, nnx.Rngs) else nnx.Rngs(self.rngs)
    if FEEDBACK not in rngs and 'default' not in rngs:
      raise FeedbackMissingError(
          f'feedback is drawn from the stream \'feedback\' of the rngs, or from \'default\', and '
          f'they have only {sorted(rngs)}. Give install others: '
          f'bioprop.install(model, rule, nnx.Rngs(feedback=0)).')
    return jax.random.fold_in(rngs[FEEDBACK](), zlib.crc32(FEEDBACK.encode()))
