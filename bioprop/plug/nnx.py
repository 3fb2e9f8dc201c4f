"""install: an NNX model whose weights learn by another rule, in place."""
import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioprop.errors import (
  FeedbackMissingError,
  NothingMatchedError,
  OutputError,
  UnsupportedLayerError,
)
from bioprop.network.feedback import init_unseen
from bioprop.network.store import Keys, Store, nested, redrawn
from bioprop.plug.choice import Where, choose
from bioprop.plug.function import FEEDBACK, Call, Plug
from bioprop.plug.nnx_effects import LEARNED, PLUG, STORE, STREAM
from bioprop.plug.nnx_run import beside, call_of, modules, plug_in, refuse_plugged, unplug
from bioprop.rules import AnyRule
from bioprop.typing import Array, Key

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
  refuse_plugged(model)
  if plug.choice.exact:
    _require_parameters(model)
    return model
  store, stream = _made(model, plug, _Draws(rngs), sample, kwargs)
  _keep(model, plug, store)
  if stream is not None:
    setattr(model, STREAM, stream)
  setattr(model, PLUG, plug)
  plug_in(model)
  return model


def uninstall(model: nnx.Module) -> nnx.Module:
  """Takes a rule out of an NNX model: its classes and variables are what they were before install.

  Args:
    model: an NNX module; one without a rule stays as it is.

  Returns:
    The model itself.
  """
  unplug(model)
  return model


def _made(model, plug: Plug, draws: '_Draws', sample, kwargs):
  """The feedback of a model, and the stream that its rules draw from at each call."""
  rules = [rule for _, rule in plug.choice.rows]
  whole = plug.choice.network
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
  if not plug.choice.redraws:
    return store, None
  return store, nnx.RngStream(jax.random.fold_in(draws.key, 1), tag=FEEDBACK)


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
  learns = lambda keys: keys in weights and plug.choice.learns_at('/'.join(keys))

  def variable(keys: Keys, value: Array) -> nnx.Variable:
    weight = weights.get(keys[1:] if plug.choice.network else keys)
    if weight is None:
      return Feedback(value)
    sharding = getattr(weight.get_raw_value(), 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding) and not isinstance(value, jax.core.Tracer):
      value = jax.device_put(value, sharding)
    metadata = {key: weight.get_metadata(key) for key in ('out_sharding', 'sharding_rules', 'mesh')
                if weight.has_metadata(key)}
    return (type(weight) if learns(keys) else Feedback)(value, **metadata)

  owners = {tuple(map(str, path)): module for path, module in modules(model)}
  learned = tuple((keys, beside(keys, owners)) for keys in sorted(filter(learns, store)))
  made = {keys: variable(keys, value) for keys, value in store.items()}
  for keys, at in learned:
    if hasattr(owners[at[:-1]], at[-1]):
      raise UnsupportedLayerError(
          f'feedback that learns is kept beside its weight, that of {"/".join(keys)!r} at '
          f'{"/".join(at)!r}, and the model has that attribute already. Rename it, or choose a '
          f'rule with frozen feedback for the weight: {{{"/".join(keys)!r}: \'fa\', \'*\': ...}}.')
    setattr(owners[at[:-1]], at[-1], made.pop(keys))
  if learned:
    setattr(model, LEARNED, learned)
  if made:
    setattr(model, STORE, nnx.data(nested(made)))


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
