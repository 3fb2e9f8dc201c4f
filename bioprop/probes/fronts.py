"""Makes a `Model` of a linen or an NNX module."""
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from bioprop.errors import MeasureError, refusing_samples, require_sample
from bioprop.fronts import linen as linen_plug
from bioprop.fronts.function import FEEDBACK, Plug
from bioprop.fronts.function import split as split_arguments
from bioprop.fronts.nnx_effects import PLUG, STREAM
from bioprop.fronts.nnx_run import call_of, stored, unplug
from bioprop.network.store import by_path, flat, nested
from bioprop.probes.model import PLAIN, Model, Values, shapes_of
from bioprop.typing import Key


def make_model(name: str, model: nn.Module | nnx.Module, sample: tuple[Any, ...],
               rngs: Mapping[str, Key] | None, kwargs: Mapping[str, Any]) -> Model:
  """A linen or NNX model, plain or plugged, which stays as it is.

  Args:
    name: of the function that asks, for messages.
    model: an unbound linen module, or an NNX module.
    sample: shapes of its inputs.
    rngs: random streams of a linen model.
    kwargs: its keyword arguments.

  Raises:
    MeasureError: if an NNX model is given rngs.
    SampleError: if there is no sample, or a linen model cannot be initialised on it.
    TypeError: if it is no such model.
  """
  if not isinstance(model, nn.Module | nnx.Module):
    raise TypeError(f'bioprop.{name} takes a flax.linen or an nnx module, plain or plugged, and '
                    f'got {model!r}. Give it the model, as in bioprop.{name}(model, ...).')
  require_sample(name, sample, kwargs)
  if isinstance(model, nnx.Module):
    return _of_nnx(model, sample, rngs, kwargs)
  return _of_linen(model, sample, rngs or {}, kwargs)


def _of_linen(model: nn.Module, sample, rngs: Mapping[str, Key], kwargs) -> Model:
  plug = model.bioprop_plug if isinstance(model, linen_plug.Plugged) else Plug(PLAIN)
  bound, bare = getattr(model, 'bioprop_bound', None), linen_plug.plain_model(model)
  more = {} if bound is None else {FEEDBACK: bound.feedback}
  streams = {**{name: jax.random.key(0) for name in ('params', FEEDBACK, 'dropout')}, **rngs}
  arrays, _, rebuild = split_arguments(sample, kwargs)

  def init(arrays):
    args, options = rebuild(arrays)
    return model.init(streams, *args, **options)

  with refusing_samples(type(bare).__name__, (sample, kwargs)):
    expected = {**jax.eval_shape(init, arrays), **shapes_of(more)}
  keys = by_path(nn.meta.unbox(linen_plug.split_learned(expected['params'], plug)[0]))[1]

  def parted(variables) -> Values:
    params, learned = linen_plug.split_learned(variables['params'], plug)
    held = {k: v for k, v in variables.items() if k not in ('params', FEEDBACK)}
    stored = {**flat(nn.meta.unbox(variables.get(FEEDBACK, {}))), **learned}
    return Values(by_path(nn.meta.unbox(params))[0], held, stored, rngs.get(FEEDBACK))

  def split(variables):
    if not isinstance(variables, Mapping):
      raise MeasureError(f'a linen model is measured at its variables, what init returned, and '
                         f'this is a {type(variables).__name__}.')
    variables = {**more, **variables}
    _check(variables, expected)
    return parted(variables)

  def call(values, inputs):
    params = nested({keys[path]: leaf for path, leaf in values.params.items()})
    return linen_plug.call_of(bare, params, values.held, inputs, kwargs, rngs, None,
                              nn.DenyList('params'))

  return Model(plug, parted(expected), keys, split, call)


def _of_nnx(model: nnx.Module, sample, rngs, kwargs) -> Model:
  if rngs:
    raise MeasureError('NNX models hold their own random streams, and take no rngs: leave rngs '
                       'out, or reseed the model\'s.')
  graph = nnx.graphdef(model, graph=True)

  def bare_call(model, inputs):
    bare = nnx.clone(model)
    unplug(bare)
    return call_of(bare, type(bare).__call__, inputs, kwargs)

  template = bare_call(model, sample)

  def values_of(model) -> Values:
    own, stream = bare_call(model, sample), vars(model).get(STREAM)
    kept = {keys: variable.get_raw_value() for keys, variable in stored(model).items()}
    # The next call's key, which it stays: the model's own stream does not move.
    return Values(own.params, own.held, kept, None if stream is None else nnx.clone(stream)())

  def split(variables):
    if not isinstance(variables, nnx.Module) or nnx.graphdef(variables, graph=True) != graph:
      raise MeasureError(
          'the derivatives of an NNX model are taken at the model itself, as it was when they were '
          'prepared: bioprop.measure.jacobians(model, x).true(model). This is another object, or '
          'its rule, its mode (train(), eval()) or another static attribute has changed: prepare '
          'again.')
    return values_of(variables)

  def call(values, inputs):
    return dataclasses.replace(template, params=values.params, held=values.held,
                               inputs=split_arguments(inputs, kwargs)[0])

  plug = vars(model).get(PLUG, Plug(PLAIN))
  return Model(plug, shapes_of(values_of(model)), template.keys, split, call)


def _check(variables, expected) -> None:
  shapes = lambda tree: jax.tree.map(lambda a: tuple(a.shape), nn.meta.unbox(tree))
  if shapes(dict(variables)) != shapes(expected):
    raise MeasureError(
        f'the variables are not those of the model that the derivatives were prepared for: they '
        f'have the collections {sorted(variables)}, and its own init gives {sorted(expected)}, or '
        f'their shapes differ. Give all of what init returned, with the parameters as they are '
        f'now: {{**variables, \'params\': params}}.')
