"""An NNX model whose weights learn by another rule, in place."""
import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioprop import errors
from bioprop.fronts.choice import Where, choose
from bioprop.fronts.function import FEEDBACK, Call, Plug
from bioprop.fronts.nnx_effects import LEARNED, PLUG, STORE, STREAM
from bioprop.fronts.nnx_run import beside, call_of, modules, plug_in, refuse_plugged
from bioprop.network.feedback import init_unseen
from bioprop.network.store import Keys, Made, Store, namesake, nested, redrawn
from bioprop.rules import AnyRule
from bioprop.typing import Array, Key

_ABSENT = object()


class Feedback(nnx.Variable):
  """Frozen feedback: no parameter, so that no optimiser moves or decays it."""


def plug_nnx(
    model: nnx.Module,
    rule: AnyRule | str | Mapping[str, AnyRule | str],
    rngs: nnx.Rngs | int | Key | None = _ABSENT,
    /,
    *sample: Any,
    output: Where = None,
    **kwargs: Any,
) -> nnx.Module:
  """See `bioprop.plug`, whose arguments and errors these are."""
  if rngs is _ABSENT:  # By its name it would be taken for the model's own argument.
    rngs = kwargs.pop('rngs', None)
  plug = Plug(choose(rule), output)
  refuse_plugged(model)
  if plug.choice.exact:
    _require_parameters(model)
    return model
  store, learns, stream = _made(model, plug, _Draws(rngs), sample, kwargs)
  _keep(model, plug, store, learns)
  if stream is not None:
    setattr(model, STREAM, stream)
  setattr(model, PLUG, plug)
  plug_in(model)
  return model


def _made(model, plug: Plug, draws: '_Draws', sample, kwargs):
  """The feedback of a model, what of it learns, and the stream of rules that draw at each call."""
  rules = [rule for _, rule in plug.choice.rows]
  whole = plug.choice.network
  given = bool(sample or kwargs)
  if not given and any(map(needs_sample, rules)):
    require_sample(plug)
  if (given or whole) and not callable(model):
    raise errors.OutputError(
        f'bioprop.plug runs the model on its sample by calling it, and {type(model).__name__} has '
        f'no __call__. Give the model a method def __call__(self, x), or leave the sample out and '
        f'choose a rule that needs none: bioprop.plug(model, \'fa\', rngs).')
  keeps = any(not rule.exact and rule.keeps_feedback for rule in rules)
  call = call_of(model, type(model).__call__ if callable(model) else None, sample, kwargs)
  if whole and not call.params:
    _require_parameters(model)
  draw = lambda key: redrawn(call.params, key)
  if given or whole:
    key = draws.key if keeps and (not whole or whole.needs_sample) else jax.random.key(0)
    made = plug.init(call, draw, key)
  else:
    made = init_without_sample(call, plug, draws.key if keeps else None)
  if not plug.choice.redraws:
    return *made, None
  return *made, nnx.RngStream(jax.random.fold_in(draws.key, 1), tag=FEEDBACK)


def needs_sample(rule: AnyRule) -> bool:
  """Whether a rule's feedback depends on the shapes inside the network."""
  return getattr(rule, 'needs_sample', False) or getattr(rule, 'reads_error', False)


def require_sample(plug: Plug) -> None:
  """Raises FeedbackMissingError: there is no sample, and a rule needs one."""
  name = next(type(rule).__name__ for _, rule in plug.choice.rows if needs_sample(rule))
  raise errors.no_sample(name)


def init_without_sample(call: Call, plug: Plug, key: Key | None) -> Made:
  """`Plug.init` of a model of which it is not known what it does with its matrices."""
  rules = {path: plug.choice.rule_for(path) for path, w in call.params.items()
           if len(w.shape) >= 2 and jnp.issubdtype(w.dtype, jnp.inexact)}
  if not rules:
    raise errors.NothingMatchedError(
        f'{call.name} holds no weight that a learning rule could apply to: it has no nnx.Param of '
        f'two axes. Give plug a sample, so that it sees what the model does with those it has: '
        f'bioprop.plug(model, rule, rngs, x).')
  plug.choice.check_used(list(rules))
  if key is None:
    return {}, frozenset()
  made = init_unseen(rules, call.params, lambda key: redrawn(call.params, key), key)
  return ({call.keys[path]: value for path, value in made.items()},
          frozenset(call.keys[path] for path in made if plug.choice.learns_at(path)))


def _keep(model: nnx.Module, plug: Plug, store: Store, learns: frozenset[Keys]) -> None:
  """Keeps feedback in the model, placed and annotated as the weights that it is beside."""
  weights = {tuple(map(str, path)): variable for path, variable in nnx.iter_graph(model, graph=True)
             if isinstance(variable, nnx.Param)}

  def variable(keys: Keys, value: Array) -> nnx.Variable:
    weight = weights.get(keys[1:] if plug.choice.network else keys)
    if weight is None:
      return (nnx.Param if keys in learns else Feedback)(value)
    sharding = getattr(weight.get_raw_value(), 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding) and not isinstance(value, jax.core.Tracer):
      value = jax.device_put(value, sharding)
    metadata = {key: weight.get_metadata(key) for key in ('out_sharding', 'sharding_rules', 'mesh')
                if weight.has_metadata(key)}
    return (type(weight) if keys in learns else Feedback)(value, **metadata)

  owners = {tuple(map(str, path)): module for path, module in modules(model)}
  learned = tuple((keys, beside(keys, owners)) for keys in sorted(learns))
  made = {keys: variable(keys, value) for keys, value in store.items()}
  for keys, at in learned:
    if hasattr(owners[at[:-1]], at[-1]):
      raise namesake(keys, at)
    setattr(owners[at[:-1]], at[-1], made.pop(keys))
  if learned:
    setattr(model, LEARNED, learned)
  if made:
    setattr(model, STORE, nnx.data(nested(made)))


def _require_parameters(model: nnx.Module) -> None:
  if not jax.tree.leaves(nnx.state(model, nnx.Param)):
    raise errors.NothingMatchedError(
        f'{type(model).__name__} has no nnx.Param that a learning rule could apply to.')


@dataclasses.dataclass
class _Draws:
  """The key of a model's feedback, made when it is first asked for."""
  rngs: nnx.Rngs | int | Key | None

  @functools.cached_property
  def key(self) -> Key:
    if self.rngs is None:
      raise errors.no_streams()
    try:
      rngs = self.rngs if isinstance(self.rngs, nnx.Rngs) else nnx.Rngs(self.rngs)
    except (TypeError, ValueError) as error:
      raise errors.odd_streams(self.rngs) from error
    if FEEDBACK not in rngs and 'default' not in rngs:
      raise errors.other_streams(sorted(rngs))
    return jax.random.fold_in(rngs[FEEDBACK](), zlib.crc32(FEEDBACK.encode()))
