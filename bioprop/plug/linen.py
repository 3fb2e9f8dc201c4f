"""wrap: a Flax linen model whose weights learn by another rule."""
import contextvars
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import union_filters
from jax.extend import core

from bioprop.errors import FeedbackMissingError, NothingMatchedError
from bioprop.plug import activity, linen_whole
from bioprop.plug.arguments import split
from bioprop.plug.choice import Choice, choose
from bioprop.plug.leaks import refuse_leaks
from bioprop.plug.marks import wanted
from bioprop.plug.output import Where, locate, replace
from bioprop.plug.readouts import readouts
from bioprop.plug.session import FEEDBACK, PORTS, Session
from bioprop.plug.unbound import without_gradient
from bioprop.rules import AnyRule
from bioprop.rules.credit import tap

_running: contextvars.ContextVar[bool] = contextvars.ContextVar('running', default=False)
_matched: set[tuple[type, 'Plug']] = set()  # Models' classes and plugs that found a layer.
_UNBOUND = (
    'a gradient was asked of a plugged model that did not run through its own apply: it was bound '
    '(model.bind, nn.apply) or used inside another module, where its rule cannot act. Wrap the '
    'outermost module, and call model.apply(variables, x).')
_examined: set[tuple[type, 'Plug', str, str]] = set()  # Models of which no weight leaks.
_traces = itertools.count()  # A number for each init, so that none reuses another's trace.


@dataclasses.dataclass(frozen=True)
class Plug:
  """What `wrap` was told: which rules, and which of the model's outputs is the network's."""
  choice: Choice
  output: Where = None


def wrap(
    model: nn.Module,
    rule: AnyRule | str | Mapping[str, AnyRule | str],
    *,
    variables: Mapping[str, Any] | None = None,
    output: Where = None,
) -> nn.Module:
  """Plugs a learning rule into a linen model.

  The result is an instance of a subclass of the model's own class: `init`, `apply`, fields,
  `isinstance` and `tabulate` work as before, the forward pass (but under `gln`) and the tree of
  parameters are the same, and gradients are the rule's pseudogradients. Frozen feedback is made by
  `init` in a collection of its own, 'feedback', to be carried as `batch_stats` is.

  Args:
    model: an unbound linen module.
    rule: a rule, its name, or a mapping from path patterns to either, first match first, as in
      {'Conv_*': 'fa', '*': 'dfa'}. A layer's rule decides how its own weights change, and what it
      sends down to whatever made its input.
    variables: what `init` of the plugged model returned. Its feedback is bound into the model, for
      loops that carry only `params`. Bound arrays become constants of the compiled program, so a
      loop that carries the collection compiles faster.
    output: which of the model's outputs carries the error, for rules that broadcast it: an index
      or key, or a tuple of them from the root down. Needed only if the model returns several.

  Returns:
    The plugged model, unbound.

  Raises:
    UnknownRuleError, RuleOptionError, PatternError: if `rule` cannot be read.
    FeedbackMissingError: if `variables` is given but holds no feedback.
    TypeError: if `model` is not a linen module.
  """
  if not isinstance(model, nn.Module):
    raise TypeError(
        f'bioprop.wrap takes an instance of a flax.linen module, and got {model!r}. '
        f'Make one first, as in bioprop.wrap(MyModel(), \'fa\').')
  plug = Plug(choose(rule), output)
  plain = type(model)._plain if isinstance(model, Plugged) else type(model)
  bound = None if variables is None else _bound_feedback(variables)
  cls = _subclass(plain, plug) if bound is None else _new_subclass(plain, plug, bound)
  return cls(**_fields(model), parent=None)


def marked_jaxpr(model: nn.Module, sample: tuple[Any, ...],
                 kwargs: Mapping[str, Any]) -> core.ClosedJaxpr:
  """A model's jaxpr with its ops marked; nothing is computed.

  Args:
    model: an unbound linen module, plain or plugged.
    sample: its inputs, arrays or `jax.ShapeDtypeStruct`s.
    kwargs: its keyword arguments.
  """
  plain = plain_model(model)
  streams = {name: jax.random.key(0) for name in ('params', 'dropout')}
  arrays, _, rebuild = split(sample, kwargs)

  def shapes(arrays):
    args, options = rebuild(arrays)
    return plain.init(streams, *args, **options)

  def apply(variables, arrays):
    args, options = rebuild(arrays)
    return marked_apply(plain, variables, args, streams, options)

  return jax.make_jaxpr(apply)(jax.eval_shape(shapes, arrays), arrays)


def marked_apply(model: nn.Module, variables: Mapping[str, Any], args: tuple[Any, ...], rngs: Any,
                 kwargs: Mapping[str, Any]) -> Any:
  """The output of a model, plain or plugged, that runs by no rule and marks all its ops."""
  hidden = _private(True, ('ops', next(_traces)))
  return _intercepted(_marking(), lambda: plain_model(model).apply(
      variables, *args, rngs=rngs, mutable=hidden, **kwargs)[0])


def plain_model(model: nn.Module) -> nn.Module:
  """The model without its rule."""
  return model._plain(**_fields(model), parent=None) if isinstance(model, Plugged) else model


def _fields(model: nn.Module) -> dict[str, Any]:
  return {f.name: getattr(model, f.name) for f in dataclasses.fields(model)
          if f.init and f.name != 'parent'}


class Plugged:
  """What a plugged model's class adds to the model's own; never instantiated by itself."""
  _plain: type[nn.Module]
  _plug: Plug
  _bound: Mapping[str, Any] | None

  def init_with_output(self, rngs, *args, **kwargs):
    """See `flax.linen.Module.init_with_output`; the variables hold the rule's feedback too."""
    return self.traced_init(rngs, *args, **kwargs)[0]

  def traced_init(self, rngs, *args, method=None, mutable=None, **kwargs):
    """((output, variables), session): `init_with_output`, and what was matched on the way."""
    mutable = nn.DenyList('intermediates') if mutable is None else mutable
    run = functools.partial(super().init_with_output, rngs, *args, method=method, **kwargs)
    hidden = _private(mutable, ('init', self._plug, next(_traces)))
    if self._plug.choice.network is not None:
      return self._whole_init(lambda: run(mutable=hidden), rngs, args, method, kwargs)
    session = _prepare(self._plug, lambda: run(mutable=_private(mutable, 'shape'))[0], ())
    out, variables = _intercepted(session, lambda: run(mutable=hidden))
    _require_match(self, session)
    self._plug.choice.check_used(list(session.records))
    return (out, {k: v for k, v in variables.items() if k != PORTS}), session

  def init(self, rngs, *args, **kwargs):
    """See `flax.linen.Module.init`; the variables hold the rule's feedback too."""
    return self.init_with_output(rngs, *args, **kwargs)[1]

  def apply(self, variables, *args, rngs=None, method=None, mutable=False, **kwargs):
    """See `flax.linen.Module.apply`; gradients are the rule's.

    Raises:
      FeedbackMissingError: if the rule has feedback and `variables` does not carry it.
      LiftedTransformError: if an `nn.scan` or `nn.vmap` drops the collections that the rule needs.
      OutputError: if the rule broadcasts the error and the model's output is not one array.
      UnsupportedLayerError: if the model uses a weight past its layer.
    """
    if self._bound is not None:
      variables = {FEEDBACK: self._bound, **variables}
    if self._plug.choice.network is not None:
      out, state = linen_whole.run(
          self, self._plug.choice.network, self._whole(rngs, method, mutable), variables, rngs,
          args, kwargs, mutable)
      return out if mutable is False else (out, state)
    run = functools.partial(super().apply, variables, *args, rngs=rngs, method=method, **kwargs)

    def output_only():
      result = run(mutable=_private(mutable, 'shape'))
      return result[0]

    self._refuse_leaks(variables, args, rngs, method, kwargs)
    session = _prepare(self._plug, output_only, variables)
    what = ('apply', self._plug, *((next(_traces),) if wanted() else ()))
    widened = union_filters(_private(mutable, what), PORTS)
    out, state = _intercepted(session, lambda: run(mutable=widened))
    _require_match(self, session)
    state = dict(state)
    ports = state.pop(PORTS, None)
    if ports:
      position, leaf = locate(out, self._plug.output)
      out = replace(out, position, tap(leaf, ports))
    return out if mutable is False else (out, state)

  def _whole(self, rngs, method, mutable) -> linen_whole.Apply:
    """The plain model's `apply`, for a rule of the whole network."""

    def apply(variables, args, kwargs):
      run = lambda: super(Plugged, self).apply(
          variables, *args, rngs=rngs, method=method,
          mutable=_private(mutable, ('whole', next(_traces))), **kwargs)
      return _intercepted(_marking(), run) if wanted() else _run(run)

    return apply

  def _whole_init(self, run, rngs, args, method, kwargs):
    """See `traced_init`; the session only notes the layers' kinds."""
    session = Session(choose('bp'))
    out, variables = _intercepted(session, run)
    streams = rngs if isinstance(rngs, Mapping) else {'params': rngs}
    made = linen_whole.feedback(
        self, self._plug.choice.network, self._whole(streams, method, nn.DenyList('params')),
        variables, rngs, args, kwargs)
    return (out, {**variables, FEEDBACK: made}), session

  def _refuse_leaks(self, variables, args, rngs, method, kwargs) -> None:
    """Once for each model and method: no weight may be used past its layer."""
    at = self._plain, self._plug, repr(self), getattr(method, '__qualname__', str(method))
    if at in _examined or 'params' not in variables or self._plug.choice.exact:
      return

    def run(params):
      return super(Plugged, self).apply(
          {**variables, 'params': params}, *args, rngs=rngs, method=method,
          mutable=_private(True, ('leaks', next(_traces))), **kwargs)[0]

    session = Session(self._plug.choice, marking=True)
    refuse_leaks(jax.make_jaxpr(
        lambda params: _intercepted(session, lambda: run(params)))(variables['params']))
    _examined.add(at)

  def _call_wrapped_method(self, fun, args, kwargs):
    out = super()._call_wrapped_method(fun, args, kwargs)
    return out if _running.get() else without_gradient(out, _UNBOUND)


def _prepare(plug: Plug, output_only, variables) -> Session:
  """A session that knows the output's shape and the activations, where a rule asks for them."""
  rules = [rule for _, rule in plug.choice.rows]
  session = Session(plug.choice, frozenset(variables))
  if any(rule.needs_activation or rule.needs_readout for rule in rules):
    marking = Session(plug.choice, marking=True)
    closed, out = jax.make_jaxpr(
        lambda: _intercepted(marking, output_only), return_shape=True)()
    wanted = lambda label: plug.choice.rule_for(label.removesuffix('.attend')).needs_activation
    session.activations = activity.activations(closed, wanted)
    session.readouts, session.auxiliaries = readouts(closed, locate(out, plug.output)[0])
  elif any(rule.reads_error for rule in rules):
    out = jax.eval_shape(lambda: _run(output_only))
  else:
    return session
  leaf = locate(out, plug.output)[1]
  session.error = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return session


def _marking() -> Session:
  """Runs a model by no rule, and marks all its ops."""
  return Session(choose('fa'), marking=True)  # Any rule that is not exact marks all weights.


def _intercepted(session: Session, run):
  with nn.intercept_methods(session):
    return _run(run)


def _run(run):
  token = _running.set(True)
  try:
    return run()
  finally:
    _running.reset(token)


def _private(mutable, what: Any):
  """`mutable` with a name that no collection has.

  `nn.jit` reuses a trace when everything that it can see of a module is the same. It does see
  `mutable`; so this name keeps a plugged model from running the plain model's trace, which would
  silently be backprop.
  """
  if isinstance(mutable, nn.DenyList):
    return nn.DenyList(union_filters(mutable.deny, f'bioprop {what}'))
  if mutable is True:
    return nn.DenyList(f'bioprop {what}')
  return union_filters(mutable, f'bioprop {what}')


def _require_match(model: nn.Module, session: Session) -> None:
  # Inside a cached nn.jit no layer is seen again; it was when that trace was made.
  if session.records:
    _matched.add((model._plain, model._plug))
  elif (model._plain, model._plug) not in _matched:
    raise NothingMatchedError(
        f'{type(model).__name__} calls no layer that a learning rule could apply to, so it would '
        f'silently learn by backprop. Known layers: nn.Dense, DenseGeneral, Conv, ConvLocal, '
        f'ConvTranspose, Einsum, Embed, and what is made of them (attention, recurrent cells). '
        f'Weights made by self.param belong in one of these layers.')


def _bound_feedback(variables: Mapping[str, Any]) -> Mapping[str, Any]:
  if FEEDBACK not in variables:
    raise FeedbackMissingError(
        f'variables has the collections {sorted(variables)}, and no {FEEDBACK!r} to bind. Give '
        f'wrap what init of the plugged model returned: variables = wrap(model, rule).init(key, x).'
        f' A rule without frozen feedback needs no variables at all.')
  return variables[FEEDBACK]


def _new_subclass(plain: type[nn.Module], plug: Plug, bound: Mapping[str, Any] | None):
  body = {'__module__': plain.__module__, '__qualname__': plain.__qualname__,
          '__doc__': plain.__doc__}
  cls = type(plain.__name__, (Plugged, plain), body)
  cls._plain, cls._plug, cls._bound = plain, plug, bound
  return cls


@functools.cache
def _subclass(plain: type[nn.Module], plug: Plug):
  """One class for equal plugs, so that equal plugged models are equal, and jit caches hit."""
  return _new_subclass(plain, plug, None)
