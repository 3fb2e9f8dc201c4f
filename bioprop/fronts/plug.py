"""plug: any model, linen, NNX or a function, learns by another rule; and unplug."""
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import flax.linen as nn
from flax import nnx

from bioprop.fronts.choice import Where
from bioprop.fronts.function import PluggedFunction, plug_function
from bioprop.fronts.linen import plain_model, plug_linen
from bioprop.fronts.nnx import plug_nnx
from bioprop.fronts.nnx_run import unplug as unplug_nnx
from bioprop.rules import AnyRule
from bioprop.typing import Key, PyTree

Linen = TypeVar('Linen', bound=nn.Module)
NNX = TypeVar('NNX', bound=nnx.Module)
Module = TypeVar('Module', bound=nn.Module | nnx.Module)
Rules = AnyRule | str | Mapping[str, AnyRule | str]


@overload
def plug(model: Linen, rule: Rules, *, variables: Mapping[str, Any] | None = None,
         output: Where = None) -> Linen: ...
@overload
def plug(model: NNX, rule: Rules, rngs: nnx.Rngs | int | Key | None = None, /, *sample: Any,
         output: Where = None, **kwargs: Any) -> NNX: ...
@overload
def plug(model: Callable[..., PyTree], rule: Rules, *, output: Where = None,
         init: Callable[[Key], PyTree] | None = None) -> PluggedFunction: ...
def plug(model: Any, rule: Rules, *args: Any, **kwargs: Any) -> Any:
  """Plugs a learning rule into a model: gradients become the rule's pseudogradients.

  The forward pass (but under `gln`), the tree of parameters, optimiser and loop stay as they are.

    model = bioprop.plug(Net(), 'dfa')                       # flax.linen: another model
    bioprop.plug(model, 'dfa', nnx.Rngs(1), x)               # flax.nnx: this very model
    plugged = bioprop.plug(lambda params, x: ..., 'dfa')     # Haiku, Equinox, by hand

  **linen**: the result is an instance of a subclass of the model's own class; `init`, `apply`,
  fields, `isinstance` and `tabulate` work as before. Frozen feedback is made by `init`, by the
  model's own init with another key, in a collection of its own, 'feedback', to be carried as
  `batch_stats` is. Feedback that learns (`kp`, `pfa`, `mirror`, `dkp`) is in 'params',
  `feedback_kernel` or `feedback_error` beside `kernel`.

  **NNX**: the model is changed in place. Its class is swapped for a subclass whose `__call__` and
  other public methods run by the rule where gradients are taken; parameters, `nnx.split` and
  `nnx.merge` stay as they are. Frozen feedback is kept by path in `model.bioprop_feedback`, as
  `Feedback` variables; feedback that learns beside its weight, as a parameter of the weight's own
  type: make the optimiser after plugging. NNX layers forget their initialisers, so feedback is
  drawn from N(0, rms(W)^2), rms(W) the weight's root mean square at this moment (LeCun's where a
  weight is constant). A gradient asked of a layer outside of the model's own methods is refused.

  **Functions** of (params, *inputs), pure: a `PluggedFunction`, whose `init_feedback` makes the
  feedback and whose `apply` takes it. Haiku: `lambda params, x: net.apply(params, None, x)`;
  Equinox: `lambda params, x: jax.vmap(eqx.combine(params, static))(x)`.

  Args:
    model: an unbound linen module, an NNX module, or a function.
    rule: a rule, its name, or a mapping from path patterns to either, first match first, as in
      {'Conv_*': 'fa', '*': 'dfa'}. A layer's rule decides how its own weights change, and what it
      sends down to whatever made its input. A path is of names of layers or keys, 'blocks/0/w'.
    rngs: (NNX) where feedback is drawn from: its stream 'feedback', or 'default'; a seed or a key
      will do. None for rules that draw none.
    *sample: (NNX) the model's inputs, one batch, arrays or `jax.ShapeDtypeStruct`s. Rules that
      broadcast the error (dfa, hebb) need them: feedback has the shape of the layer's input and of
      the model's output. Nothing is computed on them.
    **kwargs: (NNX) the model's keyword arguments on the sample, such as train=True.
    variables: (linen) what `init` of the plugged model returned. Its feedback is bound into the
      model, for loops that carry only `params`. Bound arrays become constants of the compiled
      program, so a loop that carries the collection compiles faster.
    init: (functions) maps a key to fresh parameters: feedback is drawn by it, as the parameters
      were. None: from N(0, rms(W)^2).
    output: which of the model's outputs carries the error, for rules that broadcast it: an index
      or key, or a tuple of them from the root down. Needed only if the model returns several.

  Returns:
    A plugged linen model, unbound; the NNX model itself; or a `PluggedFunction`.

  Raises:
    UnknownRuleError, RuleOptionError, PatternError: if `rule` cannot be read.
    PluggedError: if the model has another rule already.
    FeedbackMissingError: if `variables` holds no feedback; of NNX, if the rule needs a sample or
      rngs, and there are none.
    NothingMatchedError: if no parameter of an NNX model meets data in a product.
    OutputError: if the rule broadcasts the error and an NNX model's output is not one array.
    SampleError: if an NNX model cannot be called on the sample.
    UnsupportedLayerError: if a parameter of an NNX model meets data where no rule can act.
    TypeError: if `model` is none of the three, or an argument is not for its kind.
  """
  if isinstance(model, nnx.Module):
    return plug_nnx(model, rule, *args, **kwargs)
  if isinstance(model, type) or not callable(model):
    raise TypeError(
        f'bioprop.plug takes a model: an instance of a flax.linen or flax.nnx module, or a '
        f'function of (params, *inputs), and got '
        f'{model if isinstance(model, type) else type(model)}. Make the model first, as in '
        f'bioprop.plug(MyModel(), \'fa\').')
  if isinstance(model, nn.Module):
    _check(args, kwargs, ('variables', 'output'), 'a flax.linen model: it makes its feedback by '
           'itself, variables = bioprop.plug(model, rule).init(key, x)')
    return plug_linen(model, rule, **kwargs)
  _check(args, kwargs, ('output', 'init'), (
      'a function: its feedback is made by plugged.init_feedback(key, params, x)'))
  return plug_function(model, rule, **kwargs)


@overload
def unplug(model: Module) -> Module: ...
@overload
def unplug(model: PluggedFunction | Callable[..., PyTree]) -> Callable[..., PyTree]: ...
def unplug(model: Any) -> Any:
  """Takes a rule out of a model.

  Args:
    model: a linen model, an NNX model or a plugged function; one without a rule stays as it is.

  Returns:
    The plain linen model or function; the NNX model itself, all of it as it was before `plug`.
  """
  if isinstance(model, nnx.Module):
    return unplug_nnx(model)
  if isinstance(model, nn.Module):
    return plain_model(model)
  return model.function if isinstance(model, PluggedFunction) else model


def _check(args, kwargs, known: tuple[str, ...], kind: str) -> None:
  """Refuses what is meant for another kind of model."""
  short = lambda one: f'an array of shape {one.shape}' if isinstance(
      getattr(one, 'shape', None), tuple) else repr(one).partition('(')[0][:60]
  if odd := [*map(short, args), *(f'{name}=' for name in kwargs if name not in known)]:
    raise TypeError(
        f'bioprop.plug was given {", ".join(odd)} beside the rule, and the model is {kind}. Leave '
        f'it out; what can be given is {" and ".join(f"{name}=" for name in known)}.')
