"""How a plugged NNX model runs: as a pure function of its parameters, whose effects are kept.

A plugged model is of a subclass of its own class. Where a gradient may be asked, the methods of the
*root*, the model that was plugged, run a copy without its rule through the evaluator; what
the copy has changed is then written to the model. The modules inside, its *parts*, refuse gradients
that are asked of them elsewhere.
"""
import copyreg
import functools
import inspect
import re
import types
from collections.abc import Callable, Container, Mapping
from typing import Any

import flax.errors
import jax
from flax import nnx

from bioprop.errors import UnboundError, plugged_already
from bioprop.fronts.function import FEEDBACK, Call, is_traced, own_forward, split
from bioprop.fronts.linen import without_gradient
from bioprop.fronts.nnx_effects import (
  LEARNED,
  PLUG,
  STORE,
  STREAM,
  Before,
  Path,
  is_node,
  referred,
)
from bioprop.jaxprs.layout import trace_state
from bioprop.network.layered import trace
from bioprop.network.store import Keys
from bioprop.network.values import Kind
from bioprop.typing import PyTree

# Whether a root's method runs that was called with concrete arrays. It belongs to the key of JAX's
# caches: what is traced in there is not served elsewhere.
_INSIDE = jax.make_user_context(False)


def run(model: nnx.Module, method: Callable[..., Any], args: tuple[Any, ...],
        kwargs: Mapping[str, Any]) -> Any:
  """Runs a method of a root, by its rule where a gradient may be asked.

  Raises:
    PluggedError: if a part has another rule.
    UnboundError: if the method learns by a gradient of its own; when a gradient is asked, if the
      model's random stream is of another trace.
  """
  plug = getattr(model, PLUG)
  if not own_forward(plug.choice) and not _may_learn(model, args, kwargs):
    return _plainly(model, method, args, kwargs)
  refuse_plugged(model, inside=True)
  try:
    key = getattr(model, STREAM)() if STREAM in vars(model) else None
  except flax.errors.TraceContextError:
    return _refused(_plainly(model, method, args, kwargs), (
        f'{plug.choice} draws new feedback at each call, and cannot here, where the model is of '
        f'another trace: the function of which a gradient is asked closes over it, or over its '
        f'random stream. Give it the model, as in nnx.grad(loss)(model), or copies of all '
        f'variables: nnx.merge(graphdef, params, rest, copy=True).'))
  kept = {keys: variable.get_raw_value() for keys, variable in stored(model).items()}
  return _called(model, method, args, kwargs, lambda call: plug.run(call, kept, key))


def _plainly(model: nnx.Module, method, args, kwargs) -> Any:
  if LEARNED not in vars(model):
    with _INSIDE(True):
      return method(model, *args, **kwargs)
  # A method that looks at all parameters of a layer must not find feedback among them.
  return _called(model, method, args, kwargs, lambda call: call.function(
      call.params, call.held, call.inputs))


def _called(model: nnx.Module, method, args, kwargs, evaluate: Callable[[Call], Any]) -> Any:
  """Has a method run by a copy, and its effects written to the model."""
  call = call_of(model, method, args, kwargs)
  out, effects = evaluate(call)
  if effects.writes_parameters and _learns_inside(call):
    raise UnboundError(
        f'{type(model).__name__}.{method.__name__} changes or returns parameters that depend on '
        f'its inputs: a gradient that it takes by itself is backprop\'s, as the rule acts where a '
        f'gradient of the whole method is taken. Take it outside of the model: '
        f'grads = nnx.grad(loss)(model), then optimizer.update(model, grads).')
  return effects.write((model, split(args, kwargs)[1]), out)


def call_of(model: nnx.Module, method: Callable[..., Any], args: tuple[Any, ...],
            kwargs: Mapping[str, Any]) -> Call:
  """A call of a model, plain or plugged, as a function of its parameters by path.

  The model that runs is a copy without its rule; NNX objects among the arguments are copied too.
  The state that the function returns is `Effects`.
  """
  arrays, nodes, rebuild = split(args, kwargs)
  learned = {at for _, at in vars(model).get(LEARNED, ())}
  is_parameter = lambda path, variable: isinstance(variable, nnx.Param) and (
      path[0] == 0 and tuple(map(str, path[1:])) not in learned)
  graphdef, params, rest = nnx.split((model, nodes), is_parameter, ..., graph=True)
  variables = {'/'.join(map(str, path[1:])): (path, variable)
               for path, variable in nnx.to_flat_state(params)}

  def function(params, held, arrays):
    state = nnx.from_flat_state([(path, variable.replace(params[name]))
                                 for name, (path, variable) in variables.items()])
    copies = nnx.merge(graphdef, state, held, copy=True)
    unplug(copies[0])
    before = Before(copies)
    args, kwargs = rebuild({**copies[1], **arrays})
    out = referred(method(copies[0], *args, **kwargs), copies)
    return out, before.effects(out)

  values = {name: variable.get_raw_value() for name, (_, variable) in variables.items()}
  keys = {name: tuple(map(str, path[1:])) for name, (path, _) in variables.items()}
  return Call(type(model).__name__, function, values, keys, rest, arrays)


def stored(model: nnx.Module) -> dict[Keys, nnx.Variable]:
  """The variables that hold the feedback of a plugged model, by its keys."""
  nodes = {tuple(map(str, path)): node for path, node in nnx.iter_graph(model, graph=True)}
  found = {path[1:]: node for path, node in nodes.items()
           if isinstance(node, nnx.Variable) and path[:1] == (STORE,)}
  return found | {weight: nodes[at] for weight, at in vars(model).get(LEARNED, ())}


def beside(weight: Keys, owners: Container[Keys]) -> Keys:
  """Where feedback is kept that learns: in an attribute of the module that holds the weight.

  Args:
    weight: the weight's keys.
    owners: those of all modules; a container is none.
  """
  cut = next(cut for cut in reversed(range(len(weight))) if weight[:cut] in owners)
  return (*weight[:cut], re.sub(r'\W+', '_', '_'.join((FEEDBACK, *weight[cut:]))).strip('_'))


def modules(model: nnx.Module) -> list[tuple[Path, nnx.Module]]:
  """Every module of the model once, by path."""
  return [(path, node) for path, node in nnx.iter_graph(model, graph=True)
          if isinstance(node, nnx.Module)]


def refuse_plugged(model: nnx.Module, inside: bool = False) -> None:
  """Raises PluggedError if a module has a rule, or belongs to a model that has one.

  Args:
    model: the model.
    inside: it has a rule, and only its parts are asked.
  """
  roles = ((path, module, vars(type(module)).get('_bioprop_role'))
           for path, module in modules(model))
  found = [row for row in roles if row[2] and (not inside or row[0] and row[2] == 'root')]
  if found:
    path, module, role = min(found, key=lambda row: (row[2] != 'root', len(row[0])))
    at = f' at {"/".join(map(str, path))!r}' if path else ''
    rule = f'learns by {getattr(module, PLUG).choice}' if role == 'root' else (
        'is a part of a model that learns by a rule')
    raise plugged_already(at, rule)


def plug_in(model: nnx.Module) -> None:
  """Swaps the classes of a model and all its modules for plugged ones."""
  for path, module in modules(model):
    _swap(module, _class_of(type(module), 'part' if path else 'root'))


def unplug(model: nnx.Module) -> nnx.Module:
  """Takes rules out of a model: its classes and variables are what they were before."""
  for _, module in (found := modules(model)):
    if LEARNED in vars(module):
      owners = {tuple(map(str, path)): owner for path, owner in modules(module)}
      for _, at in getattr(module, LEARNED):
        delattr(owners[at[:-1]], at[-1])
  for _, module in found:
    for name in {PLUG, STORE, STREAM, LEARNED} & set(vars(module)):
      delattr(module, name)
    _swap(module, getattr(type(module), '_bioprop_plain', type(module)))
  return model


def _learns_inside(call: Call) -> bool:
  """Whether parameters that a call changes or returns depend on its inputs."""
  is_parameter = lambda leaf: isinstance(leaf, nnx.Param)

  def parameters(*arguments):
    return [leaf for leaf in jax.tree.leaves(call.function(*arguments), is_leaf=is_parameter)
            if is_parameter(leaf)]

  frame = trace(parameters, call.params, call.held, call.inputs).network.frame
  return any(frame.seen[at].kind & Kind.INPUT for at in frame.outs)


def _may_learn(model: nnx.Module, args, kwargs) -> bool:
  """Whether a gradient may be asked of a call of a root."""
  if not _tracing():
    return False
  arrays, nodes, _ = split(args, kwargs)
  # What a method differentiates by itself, as forces are, is a part of the forward pass.
  return not _INSIDE.value and is_traced(arrays) or is_traced(nnx.state((model, nodes), graph=True))


def _tracing() -> bool:
  """Whether JAX traces anything at this moment; cheap."""
  state = trace_state(convention='nnx')
  with jax.core.eval_context():
    return state != trace_state(convention='nnx')


def _refused(out: PyTree, message: str) -> PyTree:
  """`out` unchanged, modules and variables the very same; a gradient raises UnboundError."""
  return jax.tree.map(lambda leaf: leaf if is_node(leaf) else without_gradient(leaf, message), out,
                      is_leaf=is_node)


def _class_of(plain: type[nnx.Module], role: str) -> type[nnx.Module]:
  """The plugged class of a module's class, one for each role, kept with it."""
  plain = getattr(plain, '_bioprop_plain', plain)
  name = f'_bioprop_{role}'
  if name not in vars(plain):
    body = {'__module__': plain.__module__, '__qualname__': plain.__qualname__,
            '__doc__': plain.__doc__, '_bioprop_plain': plain, '_bioprop_role': role,
            '__reduce_ex__': _reduce}
    for own, method in _methods(plain).items():
      private = own.startswith('_') and own != '__call__'
      body[own] = (_as_part if private or role == 'part' else _as_root)(method)
    cls = types.new_class(plain.__name__, (plain,), {'pytree': plain._pytree__is_pytree},
                          lambda namespace: namespace.update(body))
    setattr(plain, name, cls)
  return vars(plain)[name]


def _methods(plain: type[nnx.Module]) -> dict[str, Callable[..., Any]]:
  """The methods that a class and its parents add to nnx.Module's own, decorated ones too."""
  found: dict[str, Any] = {}
  for cls in reversed(plain.__mro__):
    if not issubclass(nnx.Module, cls):
      found.update(vars(cls))
  is_method = lambda value: callable(value) and hasattr(value, '__get__') and not (
      inspect.isclass(value) or isinstance(value, staticmethod))
  return {name: value for name, value in found.items() if is_method(value) and (
      name == '__call__' or not (name.startswith('__') or hasattr(nnx.Module, name)))}


def _as_root(method):

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    return run(self, method, args, kwargs)

  return call


def _as_part(method):

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    out = method(self, *args, **kwargs)
    if not _tracing() or _INSIDE.value and not is_traced(nnx.state(self, graph=True)):
      return out
    return _refused(out, (
        f'a gradient was asked of {type(self).__name__}.{method.__name__}, a part of a plugged '
        f'model that was called outside of the model\'s own methods, where its rule cannot act. '
        f'Call the model that was plugged, or a method of it that calls this part.'))

  return call


def _reduce(self, protocol):
  """As the plain class is pickled and copied; the plugged class is made again."""
  made, (_, *rest), *state = super(type(self), self).__reduce_ex__(protocol)
  if made is not copyreg.__newobj__:
    raise TypeError(f'{type(self).__name__} pickles itself in a way of its own, which a plugged '
                    f'model cannot follow: bioprop.unplug(model) first.')
  return _remake, (type(self)._bioprop_plain, type(self)._bioprop_role, *rest), *state


def _remake(plain: type[nnx.Module], role: str, *args: Any) -> nnx.Module:
  return object.__new__(_class_of(plain, role), *args)


def _swap(module: nnx.Module, cls: type) -> None:
  # Around NNX's own __setattr__, which would take '__class__' for one of the module's attributes.
  object.__setattr__(module, '__class__', cls)
