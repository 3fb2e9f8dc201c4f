"""The rule as a flag of other people's programs: `--rule=dfa --rule_options=scale=0.1`.

An absl program gets the flags by one line, and its model by another:

  bioprop.flags.define()                       # beside the program's own flags
  model = bioprop.flags.plug(model)            # where the program makes its model

Without a flag on the command line the rule is 'bp', and the program is what it was.
"""
import dataclasses
import functools
import types
import typing
from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from bioprop.errors import ConfigError, RuleOptionError, UnknownRuleError
from bioprop.fronts import plug as front
from bioprop.fronts.choice import Where
from bioprop.fronts.function import FEEDBACK
from bioprop.rules import RULES, AnyRule, NetworkRule, Op, Site, make

_NAMES = ('rule', 'rule_options', 'rule_seed')
# The flags count as those of the module that calls `define`, which --help lists.
flags.disclaim_key_flags()


def define(prefix: str = '') -> None:
  """Defines the flags --rule, --rule_options and --rule_seed; the second call does nothing.

  Mistakes in their values end the program when it parses its flags, as absl's own do.

  Args:
    prefix: in front of the three names, for programs that have a --rule of their own.

  Raises:
    ConfigError: if the program has a flag of such a name, or ours have another prefix already.
  """
  if (ours := _prefix()) is not None:
    if ours != prefix:
      raise ConfigError(
          f'bioprop.flags.define({prefix!r}) was called after bioprop.flags.define({ours!r}), and '
          f'flags.plug could not know which of the two flags holds. Call one of them.')
    return
  for name in _NAMES:
    if prefix + name in flags.FLAGS:
      owner = flags.FLAGS.find_module_defining_flag(prefix + name)
      raise ConfigError(
          f'bioprop.flags.define({prefix!r}) cannot define --{prefix}{name}: the module {owner} '
          f'has a flag of this name, which means something else. Give ours a prefix: '
          f'bioprop.flags.define(\'learning_\') makes them --learning_rule, '
          f'--learning_rule_options and --learning_rule_seed.')
  rule_flag, options_flag, seed_flag = (prefix + name for name in _NAMES)
  flags.DEFINE(
      _RuleParser(), rule_flag, 'bp', f'Learning rule: {", ".join(RULES)}; bp leaves the model '
      f'as it is.')
  flags.DEFINE_string(
      options_flag, '', f'Options of the rule, as in --{options_flag}=rho=0.5,scale=1.0.')
  flags.DEFINE_integer(
      seed_flag, 0, 'Seed of the feedback, where the program does not make it from its own.',
      lower_bound=0, upper_bound=2**32 - 1)  # JAX takes no more bits than these from a seed.

  def check(values) -> bool:
    try:
      _make(values[rule_flag], values[options_flag])
    except RuleOptionError as error:
      text = str(error).replace('--config.rule_options.', f'--{options_flag}=')
      raise flags.ValidationError(text) from error
    return True

  flags.register_multi_flags_validator([rule_flag, options_flag], check)


def rule() -> AnyRule:
  """The rule that the flags ask for.

  Raises:
    ConfigError: if the flags were not defined.
    absl.flags.UnparsedFlagAccessError: if the program has not parsed its flags yet.
  """
  return _make(_value('rule'), _value('rule_options'))


def plug(model: Any, *sample: Any, output: Where = None, **kwargs: Any) -> Any:
  """Plugs the rule of the flags into a model; under --rule=bp, returns it as it is.

  Of a linen model: without a sample its feedback is made by `init`, to be carried in the
  collection 'feedback' as one carries `batch_stats`. With a sample the feedback is made here, from
  --rule_seed, and bound into the model, for programs that carry only `params`. It is made once for
  equal models, rules and shapes, also where this stands inside a jitted step.

  An NNX model is changed in place by `bioprop.plug`, with `nnx.Rngs(feedback=rule_seed)`.

  Args:
    model: a linen module, unbound, or an NNX module.
    *sample: inputs of the model; of a linen model only their shapes and dtypes matter. An NNX
      model needs them for rules that broadcast the error.
    output: which of the model's outputs carries the error, as in `bioprop.plug`.
    **kwargs: the model's keyword arguments, such as train=False, beside the sample.

  Returns:
    The plugged model.

  Raises:
    ConfigError: if the flags were not defined, or if a linen model's feedback is a mixture of its
      initial weights (fa with rho > 0) and is to be made here, where these are not known.
    TypeError: if `model` is neither a linen nor an NNX module.
  """
  chosen = rule()
  if not isinstance(model, nn.Module | nnx.Module):
    raise TypeError(
        f'bioprop.flags.plug takes an instance of a flax.linen or flax.nnx module, and got '
        f'{model!r}. Make one first, as in bioprop.flags.plug(MyModel()).')
  if chosen.exact:
    return model
  if isinstance(model, nnx.Module):
    rngs = nnx.Rngs(feedback=_value('rule_seed'))
    return front.plug(model, chosen, rngs, *sample, output=output, **kwargs)
  if not sample:
    return front.plug(model, chosen, output=output)
  leaves, structure = jax.tree.flatten((sample, kwargs))
  recipe = _Recipe(
      model, chosen, output, _value('rule_seed'), tuple(map(_abstract, leaves)), structure)
  try:
    hash(recipe)
  except TypeError:  # A model with a list among its fields.
    return _bound.__wrapped__(recipe)
  return _bound(recipe)


class _RuleParser(flags.ArgumentParser):
  """A rule's name; absl turns the ValueError into its own error, and tells the user."""

  def parse(self, argument: str) -> str:
    try:
      make(argument)
    except UnknownRuleError as error:
      raise ValueError(str(error).replace('--config.rule=', '--rule=')) from error
    return argument

  def flag_type(self) -> str:
    return 'string'


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """All that a linen model and its frozen feedback depend on."""
  model: nn.Module
  rule: AnyRule
  output: Where
  seed: int
  leaves: tuple[Hashable, ...]
  structure: jax.tree_util.PyTreeDef


@functools.lru_cache(maxsize=16)
def _bound(recipe: _Recipe) -> nn.Module:
  """The plugged model, with its feedback bound as constants even under a trace."""
  plugged = front.plug(recipe.model, recipe.rule, output=recipe.output)

  def grow(key):
    dummies = [jax.lax.full(leaf.shape, 0, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct)
               else leaf for leaf in recipe.leaves]
    inputs, options = jax.tree.unflatten(recipe.structure, dummies)
    streams = {'params': key, FEEDBACK: key, 'dropout': key}
    return plugged.init(streams, *inputs, **options).get(FEEDBACK, {})

  with jax.ensure_compile_time_eval():
    if _mixes_weights(recipe.rule):
      raise ConfigError(
          f'{recipe.rule} makes its feedback out of the model\'s initial weights, and '
          f'flags.plug(model, sample) does not know them: the program draws them later, with a key '
          f'of its own. Bind what that init returned: model = bioprop.flags.plug(model), variables '
          f'= model.init(key, x), model = bioprop.plug(model, bioprop.flags.rule(), '
          f'variables=variables).')
    # The forward pass is not needed for the feedback, and XLA drops it.
    made = jax.jit(grow)(jax.random.key(recipe.seed))
  variables = {FEEDBACK: made} if made else None
  return front.plug(recipe.model, recipe.rule, variables=variables, output=recipe.output)


def _mixes_weights(chosen: AnyRule) -> bool:
  """Whether a rule's feedback depends on W(0), tried on one small layer."""
  if isinstance(chosen, NetworkRule):
    return chosen.keeps_weights
  op = Op(lambda params, x: x @ params['kernel'], ('kernel',))
  x, e = (jax.ShapeDtypeStruct((1, width), jnp.float32) for width in (2, 3))
  ones = {'kernel': jnp.ones((2, 3))}
  made = [
      chosen.init_feedback(jax.random.key(0), Site('', op, params, lambda _: ones, x, e))
      for params in (ones, {'kernel': -jnp.ones((2, 3))})]
  return not jax.tree.all(jax.tree.map(np.array_equal, *made))


def _abstract(leaf: Any) -> Any:
  """Shape and dtype of an array; a flag such as train=False is itself."""
  if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype'):
    seen = jax.eval_shape(lambda a: a, leaf)  # As jit sees it: numpy's int64 is int32.
    return jax.ShapeDtypeStruct(seen.shape, seen.dtype)
  return leaf


def _prefix() -> str | None:
  """The prefix of our flags, None if they are not defined."""
  names = (name for name in flags.FLAGS if isinstance(flags.FLAGS[name].parser, _RuleParser))
  return next((name.removesuffix('rule') for name in names), None)


def _value(name: str) -> Any:
  prefix = _prefix()
  if prefix is None:
    raise ConfigError(
        f'bioprop.flags.plug reads the flag --{name}, which this program does not define. Call '
        f'bioprop.flags.define() where it defines its own flags, before app.run(main).')
  return getattr(flags.FLAGS, prefix + name)


def _make(name: str, options: str) -> AnyRule:
  """A rule from its name and 'rho=0.5,scale=1.0'."""
  given: dict[str, Any] = {}
  hints = typing.get_type_hints(RULES[name])
  fields = {field.name for field in dataclasses.fields(RULES[name])}
  for part in filter(None, (part.strip() for part in options.split(','))):
    option, equals, text = part.partition('=')
    if not equals or option in given:
      raise RuleOptionError(
          f'the option {part!r} {"is given twice" if equals else "has no value"}. Options are '
          f'written name=value, each once, with commas between, as in rho=0.5,scale=1.0.')
    given[option] = _typed(name, option, hints[option], text) if option in fields else text
  return make(name, **given)


def _typed(name: str, option: str, hint: Any, text: str) -> Any:
  """The text as a value of the option's type."""
  kinds = typing.get_args(hint) or (hint,)
  if text.lower() == 'none' and types.NoneType in kinds:
    return None
  for kind in kinds:
    try:
      if kind is bool:
        return {'true': True, 'false': False}[text.lower()]
      if kind in (int, float, str):
        return kind(text)
    except (KeyError, ValueError):
      continue
  wanted = ' or '.join('None' if kind is types.NoneType else kind.__name__ for kind in kinds)
  raise RuleOptionError(
      f'option {option!r} of rule {name!r} got {text!r}, which is no {wanted}. Give it as '
      f'--config.rule_options.{option}=<{wanted}>.')
