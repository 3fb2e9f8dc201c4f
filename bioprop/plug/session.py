"""One run of a plugged linen model: what happens at each layer's call.

A session is the method interceptor of one `init` or `apply`. It turns every call of a known layer
into an op with a rule behind it, and leaves everything else alone.
"""
import contextlib
import contextvars
import dataclasses
import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.errors import FeedbackMissingError, LiftedTransformError, UnsupportedLayerError
from bioprop.plug import activity
from bioprop.plug.choice import Choice
from bioprop.plug.marks import mark_input, mark_output, mark_weights, wanted
from bioprop.plug.rnn import carrying
from bioprop.plug.sites import OPS, REPARAMETRISED, RNN_CALL, SAME_AS, OpKind
from bioprop.rules import Op, Rule, Site
from bioprop.rules.credit import assign
from bioprop.typing import Array, Key, Params

FEEDBACK = 'feedback'  # The collection of frozen feedback, and the name of its random stream.
PORTS = 'ports'        # The collection in which error ports travel from the ops to the output tap.

# Inside an op its own layer runs as it is; anything else of ours must leave it alone.
_inside_op: contextvars.ContextVar[bool] = contextvars.ContextVar('inside_op', default=False)


@dataclasses.dataclass
class Record:
  """What a session did with one layer: the row that `describe` prints."""
  path: str
  kind: str
  rule: Rule
  weights: tuple[str, ...]
  feedback: dict[str, tuple[int, ...]]
  activation: str | None = None


@dataclasses.dataclass
class Session:
  """The interceptor of one run.

  Attributes:
    choice: which layer gets which rule.
    carried: the names of the collections that were passed to `apply`.
    error: shape and dtype of the network's output, for rules that broadcast its error.
    activations: the nonlinearity after each op by label, for rules that need it.
    readouts: the labels of the ops that are readouts, for rules that need them.
    auxiliaries: the labels of those that reach another output so.
    marking: only leave `marks` in the jaxpr; no rule acts.
    records: what was matched, by path.
    modules: the class of every module that ran, by path.
    normalised: the call is inside an nn.WeightNorm or nn.SpectralNorm.
  """
  choice: Choice
  carried: frozenset[str] = frozenset()
  error: jax.ShapeDtypeStruct | None = None
  activations: dict[str, activity.Activation] = dataclasses.field(default_factory=dict)
  readouts: frozenset[str] = frozenset()
  auxiliaries: frozenset[str] = frozenset()
  marking: bool = False
  records: dict[str, Record] = dataclasses.field(default_factory=dict)
  modules: dict[str, type[nn.Module]] = dataclasses.field(default_factory=dict)
  normalised: bool = False

  def __call__(self, next_fun, args, kwargs, context):
    """Intercepts one method call; see `nn.intercept_methods`."""
    if _inside_op.get() or context.module.scope is None:
      return next_fun(*args, **kwargs)
    self.modules['/'.join(context.module.path)] = type(context.module)
    code = context.orig_method.func
    if code in SAME_AS:
      return SAME_AS[code](context.module, *args, **kwargs)
    if code is RNN_CALL:
      with carrying(context.module, FEEDBACK, PORTS):
        return next_fun(*args, **kwargs)
    if isinstance(context.module, REPARAMETRISED):
      with self._reparametrised():
        return next_fun(*args, **kwargs)
    kind = OPS.get(code)
    if kind is None:
      return next_fun(*args, **kwargs)
    return self._op(context.module, kind, next_fun, args, kwargs)

  @contextlib.contextmanager
  def _reparametrised(self):
    outer, self.normalised = self.normalised, True
    try:
      yield
    finally:
      self.normalised = outer

  def _op(self, module: nn.Module, kind: OpKind, next_fun, args, kwargs) -> Array:
    path = '/'.join(module.path)
    rule = self.choice.rule_for(path)
    if self.marking or rule.exact and wanted():
      if not self.marking:
        self._record(module, kind, rule, path)
      return self._marked(module, kind, rule, next_fun, args, kwargs)
    if self.normalised and not rule.exact:
      raise UnsupportedLayerError(
          f'the layer {path!r} is wrapped in nn.WeightNorm or nn.SpectralNorm, whose lifted '
          f'transform does not let feedback in, so {type(rule).__name__} cannot act on it. Leave '
          f'it on backprop: bioprop.wrap(model, {{{path!r}: \'bp\', \'*\': ...}}).')
    initial = module.is_initializing()
    if rule.exact or initial or 'params' not in module.variables:
      y = next_fun(*args, **kwargs)
      if not rule.exact and initial:
        site = self._site(module, kind, rule, args, kwargs)[0]
        self._grow(module, rule, site)
      self._record(module, kind, rule, path)
      return y
    site, x = self._site(module, kind, rule, args, kwargs)
    if module.scope.is_mutable_collection(FEEDBACK) and module.scope.has_rng(FEEDBACK):
      self._grow(module, rule, site)
    feedback = self._feedback(module, rule, site)
    self._record(module, kind, rule, path)
    port = None
    if rule.reads_error:
      self._check_ports(module, path)
      port = jnp.zeros(self.error.shape, self.error.dtype)
    label = kind.label(path)
    x = mark_input(x, label) if wanted() else x
    y, port = assign(rule, site.op, site.params, x, feedback, port)
    y = mark_output(y, label) if wanted() else y
    if port is not None:
      calls = len(module.variables.get(PORTS, {}))
      module.scope.put_variable(PORTS, f'call_{calls}', port)
    return y

  def _marked(self, module, kind, rule, next_fun, args, kwargs) -> Array:
    """The layer's output, with all marks; its weights' only where a rule will act on them."""
    bound = inspect.signature(inspect.unwrap(kind.method)).bind(module, *args, **kwargs)
    label, name = kind.label('/'.join(module.path)), list(bound.arguments)[1]
    bound.arguments[name] = mark_input(jnp.asarray(bound.arguments[name]), label)
    args, kwargs = bound.args[1:], bound.kwargs
    if rule.exact or module.is_initializing() or 'params' not in module.variables:
      return mark_output(next_fun(*args, **kwargs), label)
    site, x = self._site(module, kind, rule, args, kwargs)
    return mark_output(site.op(mark_weights(site.params, kind.weights, site.path), x), label)

  def _site(self, module, kind, rule, args, kwargs) -> tuple[Site, Array]:
    bound = inspect.signature(inspect.unwrap(kind.method)).bind(module, *args, **kwargs)
    (_, _), (input_name, x), *rest = bound.arguments.items()
    x, extra = jnp.asarray(x), dict(rest)
    path = '/'.join(module.path)
    pure = _alone(module)

    def function(params: Params, x: Array) -> Array:
      token = _inside_op.set(True)
      try:
        return pure.apply({'params': params}, **{input_name: x}, **extra, method=kind.method)
      finally:
        _inside_op.reset(token)

    def redraw(key: Key) -> Params:
      token = _inside_op.set(True)
      try:
        drawn = pure.init(key, **{input_name: x}, **extra, method=kind.method)['params']
      finally:
        _inside_op.reset(token)
      return {n: jax.tree.map(lambda w: _not_constant(w, key), drawn[n]) for n in kind.weights}

    params = {n: p for n, p in module.variables['params'].items() if not n.startswith(FEEDBACK)}
    label = kind.label(path)
    op = Op(function, kind.weights, self.activations.get(label), label in self.readouts,
            label in self.auxiliaries)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return Site(path, op, params, redraw, shape, self.error if rule.reads_error else None), x

  def _grow(self, module: nn.Module, rule: Rule, site: Site) -> None:
    """Makes the site's feedback if it has none yet."""
    if not _has_feedback(rule):
      return
    scope, collection = module.scope, _home(rule)
    if self._stored(module, rule):
      return
    if not scope.is_mutable_collection(collection):
      raise LiftedTransformError(_lifted(site.path, rule))
    made = rule.init_feedback(_feedback_key(scope), site)
    for name, value in (made or {}).items():
      scope.put_variable(collection, _leaf(rule, name), value)

  def _feedback(self, module: nn.Module, rule: Rule, site: Site) -> dict[str, Any] | None:
    fresh = {}
    if rule.redraws:
      if not module.scope.has_rng(FEEDBACK):
        raise FeedbackMissingError(
            f'{type(rule).__name__} draws new feedback at every step, and the layer {site.path!r} '
            f'has no random stream for it. Pass one: model.apply(variables, x, '
            f'rngs={{\'feedback\': jax.random.fold_in(key, step)}}); inside an nn.scan or nn.vmap, '
            f'also name it in split_rngs={{\'params\': True, \'feedback\': True}}.')
      fresh = {'key': module.scope.make_rng(FEEDBACK)}
    if not _has_feedback(rule) or not (site.sends or rule.learns):
      return fresh or None
    stored = self._stored(module, rule)
    if not stored and not site.sends:
      return fresh or None
    if not stored:
      carried = _home(rule) in self.carried
      raise (LiftedTransformError(_lifted(site.path, rule)) if carried and not rule.learns
             else FeedbackMissingError(_missing(site.path, rule)))
    return {**stored, **fresh}

  def _stored(self, module: nn.Module, rule: Rule) -> dict[str, Any]:
    """The site's feedback by name, {} if there is none."""
    here = module.variables.get(_home(rule), {})
    if rule.learns:
      prefix = _leaf(rule, '')
      return {n.removeprefix(prefix): v for n, v in here.items() if n.startswith(prefix)}
    # A layer that has layers inside shares its scope's dict with theirs.
    own = module.variables.get('params', {})
    return {n: v for n, v in here.items() if not isinstance(own.get(n), Mapping)}

  def _check_ports(self, module: nn.Module, path: str) -> None:
    if not module.scope.is_mutable_collection(PORTS):
      raise LiftedTransformError(
          f'the error at the network\'s output cannot reach the layer {path!r}: it lies in a '
          f'lifted transform that does not carry the collection {PORTS!r}. Name it where the '
          f'model says nn.scan or nn.vmap: '
          f'variable_axes={{\'params\': 0, \'feedback\': 0, \'ports\': 0}}; '
          f'or choose a rule that needs no broadcast, such as \'fa\'.')

  def _record(self, module: nn.Module, kind: OpKind, rule: Rule, path: str) -> None:
    stored = {} if rule.exact else self._stored(module, rule)
    shapes = {name: jnp.shape(leaf) for name, value in stored.items()
              for leaf in jax.tree.leaves(value)}
    phi = None
    if rule.needs_activation and kind.label(path) in self.activations:
      phi = self.activations[kind.label(path)].name
    previous = self.records.get(path)
    kinds = kind.name if previous is None or kind.name in previous.kind.split('+') else (
        f'{previous.kind}+{kind.name}')
    self.records[path] = Record(path, kinds, rule, kind.weights, shapes, phi)


def _alone(module: nn.Module) -> nn.Module:
  """The layer without its parent; of the user's class where it is itself the plugged model."""
  pure = module.clone(parent=None)
  plain = getattr(type(module), '_plain', None)
  if plain is None:
    return pure
  fields = {f.name: getattr(pure, f.name) for f in dataclasses.fields(pure)
            if f.init and f.name != 'parent'}
  return plain(**fields, parent=None)


def _has_feedback(rule: Rule) -> bool:
  return type(rule).init_feedback is not Rule.init_feedback


def _feedback_key(scope) -> Key:
  """A key for this scope's feedback, never one that the model's own initialisers use.

  Without a stream of its own it comes from 'params', whose count of draws stays as it is: the
  initial parameters are the plain model's.
  """
  own = scope.has_rng(FEEDBACK) or not scope.has_rng('params')
  key = scope.make_rng(FEEDBACK) if own else scope.rngs['params'].as_jax_rng()
  return jax.random.fold_in(key, zlib.crc32(FEEDBACK.encode()))


def _home(rule: Rule) -> str:
  return 'params' if rule.learns else FEEDBACK


def _leaf(rule: Rule, name: str) -> str:
  return f'{FEEDBACK}_{name}' if rule.learns else name


def _not_constant(w: Array, key: Key) -> Array:
  """A LeCun-normal draw in place of a constant one: feedback of zeros would carry no error."""
  fan_in = max(1, w.size // w.shape[-1]) if w.ndim else 1
  normal = jax.random.normal(jax.random.fold_in(key, 1), w.shape, w.dtype) / fan_in**0.5
  return jnp.where(jnp.max(w) == jnp.min(w), normal, w)


def _missing(path: str, rule: Rule) -> str:
  if rule.learns:
    return (f'the layer {path!r} has no feedback weights in \'params\', where '
            f'{type(rule).__name__} keeps them so that the optimiser moves them. Parameters of the '
            f'plain model lack them: take the rest from the plugged model\'s own init, as in '
            f'variables = model.init(key, x), and copy the loaded weights into it.')
  return (f'the layer {path!r} has no feedback weights: the variables have no collection '
          f'{FEEDBACK!r}. Carry what init returned, as one carries batch_stats: '
          f'state = {{k: v for k, v in model.init(key, x).items() if k != \'params\'}}, then '
          f'model.apply({{\'params\': params, **state}}, x); or bind it once, for a loop that '
          f'carries only params: model = bioprop.wrap(model, rule, variables=variables), or '
          f'bioprop.from_flags(model, x).')


def _lifted(path: str, rule: Rule) -> str:
  ports = ', \'ports\': 0' if rule.reads_error else ''
  return (f'the layer {path!r} has no feedback weights: it lies in a lifted transform that does '
          f'not carry the collection {FEEDBACK!r}. Name it where the model says nn.scan or '
          f'nn.vmap: variable_axes={{\'params\': 0, \'feedback\': 0{ports}}} (or, where the '
          f'weights are shared, variable_broadcast=(\'params\', \'feedback\')), and run init '
          f'again.')
