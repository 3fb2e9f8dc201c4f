"""A Flax linen model whose weights learn by another rule."""
import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import in_filter

from bioprop import errors
from bioprop.fronts.choice import Where, choose
from bioprop.fronts.function import FEEDBACK, Call, Plug, is_traced, own_forward, split
from bioprop.network.needed import only_what_is_needed
from bioprop.network.store import Keys, by_path, flat, namesake, nested
from bioprop.rules import AnyRule
from bioprop.typing import Array, Key, PyTree

_UNBOUND = (
    'a gradient was asked of a plugged model that did not run through its own apply: it was bound '
    '(model.bind, nn.apply) or used inside another module, where its rule cannot act. Plug the '
    'outermost module, and call model.apply(variables, x).')
_LEARNED = f'{FEEDBACK}_'  # In front of the name of feedback that is a parameter.


def plug_linen(model: nn.Module, rule: AnyRule | str | Mapping[str, AnyRule | str], *,
               variables: Mapping[str, Any] | None = None, output: Where = None) -> nn.Module:
  """See `bioprop.plug`, whose arguments and errors these are."""
  plug = Plug(choose(rule), output)
  if isinstance(model, Plugged) and model.bioprop_plug != plug:
    raise errors.PluggedError(
        f'{type(model).__name__} learns by {model.bioprop_plug.choice} already, and two rules '
        f'cannot both act on its weights. Plug the plain model, '
        f'bioprop.plug({type(model).__name__}(...), ...), or mix rules in one choice: '
        f'{{\'Conv_*\': \'fa\', \'*\': \'dfa\'}}.')
  bound = None if variables is None else Bound(variables)
  return _plugged(type(plain_model(model)), fields_of(model), plug, bound)


class Bound:
  """Feedback that is bound into a model; compared by identity."""

  def __init__(self, variables: Mapping[str, Any]):
    if FEEDBACK not in variables:
      raise errors.FeedbackMissingError(
          f'variables has the collections {sorted(variables)}, and no {FEEDBACK!r} to bind. Give '
          f'plug what init of the plugged model returned: variables = bioprop.plug(model, '
          f'rule).init(key, x). A rule without frozen feedback needs no variables at all.')
    self.feedback = variables[FEEDBACK]


def plain_model(model: nn.Module) -> nn.Module:
  """The model without its rule."""
  if not isinstance(model, Plugged):
    return model
  return type(model).bioprop_plain(**fields_of(model), parent=None)


def fields_of(model: nn.Module) -> dict[str, Any]:
  """The fields of the user's model."""
  return {f.name: getattr(model, f.name) for f in dataclasses.fields(model)
          if f.init and f.name not in ('parent', 'bioprop_plug', 'bioprop_bound')}


class Plugged:
  """What a plugged model's class adds to the model's own; never instantiated by itself."""

  def init_with_output(self, rngs, *args, method=None, mutable=None, **kwargs):
    """See `flax.linen.Module.init_with_output`; the variables hold the rule's feedback too."""
    mutable = nn.DenyList('intermediates') if mutable is None else mutable
    plain = plain_model(self)
    out, variables = plain.init_with_output(
        rngs, *args, method=method, mutable=mutable, **kwargs)
    if not jax.tree.leaves(variables.get('params', {})):
      raise errors.NothingMatchedError(
          f'{type(self).__name__} has no parameters that a learning rule could apply to.')
    if self.bioprop_plug.choice.exact:
      return out, variables
    return out, self._grown(plain, variables, _streams(rngs), args, kwargs, method)

  def init(self, rngs, *args, **kwargs):
    """See `flax.linen.Module.init`; the variables hold the rule's feedback too."""
    return self.init_with_output(rngs, *args, **kwargs)[1]

  def apply(self, variables, *args, rngs=None, method=None, mutable=False, **kwargs):
    """See `flax.linen.Module.apply`; gradients are the rule's.

    Raises:
      FeedbackMissingError: if the rule has feedback and `variables` does not carry it.
      OutputError: if the rule broadcasts the error and the model's output is not one array.
      UnsupportedLayerError: if a parameter meets data in a product where no rule can act.
    """
    plug, plain = self.bioprop_plug, plain_model(self)
    if self.bioprop_bound is not None:
      variables = {FEEDBACK: self.bioprop_bound.feedback, **variables}
    streams, grows = _streams(rngs), in_filter(mutable, FEEDBACK)
    if FEEDBACK not in variables and grows and FEEDBACK in streams:
      grown = self._grown(plain, {**variables}, streams, args, kwargs, method)
      variables = {**variables, **{k: v for k, v in grown.items() if k == FEEDBACK}}
    params, learned = split_learned(variables.get('params', {}), plug)
    held = {k: v for k, v in variables.items() if k not in ('params', FEEDBACK)}
    _require(self, variables, learned, params, streams)
    stored = {**flat(nn.meta.unbox(variables.get(FEEDBACK, {}))), **learned}
    call = call_of(plain, params, held, args, kwargs, rngs, method, mutable)
    if not plug.choice.exact:
      plug.check(call, stored)
    if plug.choice.exact or not (own_forward(plug.choice) or is_traced((variables, args, kwargs))):
      result = plain.apply({**held, 'params': params}, *args, rngs=rngs, method=method,
                           mutable=mutable, **kwargs)
      out, state = (result, {}) if mutable is False else result
    else:
      out, state = plug.run(call, stored, streams.get(FEEDBACK))
    if mutable is False:
      return out
    if grows and FEEDBACK in variables:
      state = {**state, FEEDBACK: variables[FEEDBACK]}
    return out, _with_learned(state, learned)

  def _grown(self, plain, variables, streams, args, kwargs, method) -> dict[str, Any]:
    """The variables, and feedback made for their parameters."""
    plug, params = self.bioprop_plug, variables.get('params', {})
    held = {k: v for k, v in variables.items() if k != 'params'}
    call = call_of(plain, params, held, args, kwargs, streams, method, nn.DenyList('params'))

    def fresh(key: Key) -> PyTree:
      made = plain.init({**streams, 'params': key}, *args, method=method, **kwargs)
      return nn.meta.unbox(made['params'])

    def draw(key: Key) -> dict[str, Array]:
      return by_path(only_what_is_needed(fresh, key))[0]

    made, learns = plug.init(call, draw, _key(streams))
    store = _boxed(made, params)
    if learns:
      for taken in (keys for keys in sorted(learns) if beside(keys) in call.keys.values()):
        raise namesake(taken, beside(taken))
      learned = {beside(keys): store.pop(keys) for keys in sorted(learns)}
      variables = {**variables, 'params': _merged(params, learned)}
    frozen = store or plug.choice.keeps_frozen
    return {**variables, **({FEEDBACK: nested(store)} if frozen else {})}

  def _call_wrapped_method(self, fun, args, kwargs):
    return without_gradient(super()._call_wrapped_method(fun, args, kwargs), _UNBOUND)

  def __reduce__(self):
    return _plugged, (type(self).bioprop_plain, fields_of(self), self.bioprop_plug,
                      self.bioprop_bound)


def _plugged(plain: type[nn.Module], fields: Mapping[str, Any], plug: Plug,
             bound: Bound | None) -> nn.Module:
  return _subclass(plain)(**fields, parent=None, bioprop_plug=plug, bioprop_bound=bound)


def _subclass(plain: type[nn.Module]) -> type[nn.Module]:
  """The plugged class of a model's class: one for each, kept with it."""
  if '_bioprop_plugged' not in vars(plain):
    hidden = lambda: dataclasses.field(default=None, repr=False, kw_only=True)
    body = {'__module__': plain.__module__, '__qualname__': plain.__qualname__,
            '__doc__': plain.__doc__, 'bioprop_plain': plain,
            '__annotations__': {'bioprop_plug': Plug | None, 'bioprop_bound': Bound | None},
            'bioprop_plug': hidden(), 'bioprop_bound': hidden()}
    plain._bioprop_plugged = type(plain.__name__, (Plugged, plain), body)
  return vars(plain)['_bioprop_plugged']


@errors.refusing_forward_mode()
def without_gradient(out: PyTree, message: str) -> PyTree:
  """`out` unchanged; its gradient raises UnboundError: it would silently be backprop's."""

  @jax.custom_vjp
  def identity(a):
    return a

  def refuse(_, g):
    del g
    raise errors.UnboundError(message)

  identity.defvjp(lambda a: (a, None), refuse)
  traced = lambda a: isinstance(a, jax.core.Tracer) and jnp.issubdtype(a.dtype, jnp.inexact)
  return jax.tree.map(lambda a: identity(a) if traced(a) else a, out)


def beside(weight: Keys) -> Keys:
  """Where in `params` feedback is kept that learns."""
  return (*weight[:-1], f'{_LEARNED}{weight[-1]}')


def split_learned(params: Mapping[str, Any], plug: Plug) -> tuple[Any, dict[Keys, Array]]:
  """The parameters of the plain model, and what learned feedback lies among them, by its weight."""
  if not plug.choice.learns:
    return params, {}
  learned: dict[Keys, Array] = {}

  def plain(tree, above):
    kept = {}
    for name, inner in tree.items():
      own = name.removeprefix(_LEARNED)
      if isinstance(inner, Mapping):
        kept[name] = plain(inner, (*above, name))
      elif name != own and (own in tree or plug.choice.may_learn(own)):
        learned[*above, own] = nn.meta.unbox(inner)
      else:
        kept[name] = inner
    return kept

  return plain(params, ()), learned


def call_of(plain: nn.Module, params, held, args, kwargs, rngs, method, mutable) -> Call:
  """A call of a plain model as a function of its parameters by path; arguments as of `apply`."""
  leaves, keys = by_path(nn.meta.unbox(params))
  arrays, _, rebuild = split(args, kwargs)
  structure, order = jax.tree.structure(params), list(leaves)

  def function(leaves, held, arrays):
    args, kwargs = rebuild(arrays)
    params = jax.tree.unflatten(structure, [leaves[path] for path in order])
    result = plain.apply({**held, 'params': params}, *args, rngs=rngs, method=method,
                         mutable=mutable, **kwargs)
    return (result, {}) if mutable is False else result

  return Call(type(plain).__name__, function, leaves, keys, held, arrays)


def _boxed(store: Mapping[Keys, Any], params) -> dict[Keys, Any]:
  """Feedback in the box of the parameter that it is beside."""

  def boxed(keys, leaf):
    node = params
    for key in keys[1:] if keys[0] == 'initial' and 'initial' not in params else keys:
      node = node.get(key) if isinstance(node, Mapping) else None
    return jax.tree.map(lambda _: leaf, node) if isinstance(node, nn.meta.AxisMetadata) else leaf

  return {keys: boxed(keys, leaf) for keys, leaf in store.items()}


def _merged(params, learned: Mapping[Keys, Any]):
  """The tree of parameters with leaves added to it."""
  tree = {name: _merged(inner, {keys[1:]: leaf for keys, leaf in learned.items()
                                if keys[0] == name and len(keys) > 1})
          if isinstance(inner, Mapping) else inner for name, inner in params.items()}
  return {**tree, **{keys[0]: leaf for keys, leaf in learned.items() if len(keys) == 1}}


def _with_learned(state, learned: Mapping[Keys, Any]):
  if not learned or 'params' not in state:
    return state
  return {**state, 'params': _merged(state['params'], {
      beside(keys): leaf for keys, leaf in learned.items()})}


def _streams(rngs: Any) -> dict[str, Key]:
  if rngs is None:
    return {}
  return dict(rngs) if isinstance(rngs, Mapping) else {'params': rngs}


def _key(streams: Mapping[str, Key]) -> Key:
  """A key for feedback, never one that the model's own initialisers use."""
  key = streams.get(FEEDBACK, streams.get('params'))
  return jax.random.fold_in(jax.random.key(0) if key is None else key,
                            zlib.crc32(FEEDBACK.encode()))


def _require(model: 'Plugged', variables, learned, params, streams) -> None:
  """Raises FeedbackMissingError if the rule has none of what it keeps, or nothing to draw from."""
  choice = model.bioprop_plug.choice
  if choice.redraws and FEEDBACK not in streams:
    raise errors.FeedbackMissingError(
        f'{choice} draws new feedback at every step, and {type(model).__name__} has no random '
        f'stream for it. Pass one: model.apply(variables, x, '
        f'rngs={{\'feedback\': jax.random.fold_in(key, step)}}).')
  if choice.keeps_frozen and FEEDBACK not in variables:
    raise errors.FeedbackMissingError(
        f'{choice} keeps feedback for {type(model).__name__} in the collection {FEEDBACK!r}, and '
        f'the variables have only {sorted(variables)}. Carry what init returned, as one carries '
        f'batch_stats: state = {{k: v for k, v in model.init(key, x).items() if k != '
        f'\'params\'}}, then model.apply({{\'params\': params, **state}}, x); or bind it once, for '
        f'a loop that carries only params: model = bioprop.plug(model, rule, variables=variables), '
        f'or bioprop.flags.plug(model, x). For parameters that are there already: model.apply('
        f'{{\'params\': params}}, x, mutable=[\'feedback\'], rngs={{\'feedback\': key}})[1].')
  if choice.learns and not learned and params:
    raise errors.FeedbackMissingError(
        f'there are no feedback weights in \'params\', where {choice} keeps them so that the '
        f'optimiser moves them. Parameters of the plain model lack them: take the rest from init, '
        f'flat = flax.traverse_util.flatten_dict; params = flax.traverse_util.unflatten_dict('
        f'flat(model.init(key, x)[\'params\']) | flat(params)).')
