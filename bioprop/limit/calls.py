"""A call of a linen, NNX or plain model whose parameters can be drawn anew."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from bioprop.errors import TheoryError, refusing_samples
from bioprop.fronts import linen as linen_plug
from bioprop.fronts import nnx as nnx_plug
from bioprop.fronts.function import Call, split
from bioprop.fronts.nnx_run import unplug
from bioprop.limit.variances import Draw
from bioprop.network.store import by_path
from bioprop.typing import Key

_STREAMS = ('params', 'feedback', 'dropout')


def call_of(model: Any, part: tuple[Any, ...], kwargs: Mapping[str, Any], init: Any,
            key: Key) -> tuple[Call, Draw | None]:
  """A call of the plain model at drawn parameters, and how to draw others.

  Args:
    model, kwargs, init: as of `bioprop.theory.infinite`.
    part: samples.
    key: of the draw.

  Raises:
    TheoryError: if parameters cannot be drawn, or are drawn twice.
    SampleError: if the model cannot be called on the samples.
    TypeError: if it is no model.
  """
  if isinstance(model, nn.Module):
    return _linen(linen_plug.plain_model(model), part, kwargs, init, key)
  if isinstance(model, nnx.Module):
    plain = unplug(nnx.clone(model))
    make = lambda model: nnx_plug.call_of(model, type(plain).__call__, part, kwargs)
    draw = None if init is None else (lambda key: make(init(key)).params)
    return make(plain), draw
  if callable(model):
    return _function(model, part, kwargs, init, key)
  raise TypeError(f'bioprop.theory.infinite takes a flax.linen module, an nnx module or a function '
                  f'of (params, *inputs), and got {model!r}. Give it the model, as in '
                  f'bioprop.theory.infinite(MLP(), x).')


def _linen(plain: nn.Module, part, kwargs, init, key: Key):
  if init is not None:
    raise TheoryError('a linen model draws its own parameters, and takes no init. Leave init out.')
  streams = {name: jax.random.fold_in(key, at) for at, name in enumerate(_STREAMS)}

  def make(key):
    return plain.init({**streams, 'params': key}, *part, **kwargs)

  with refusing_samples(type(plain).__name__, (part, kwargs)):
    variables = jax.jit(make)(key)
  params, held = variables.get('params', {}), {
      name: one for name, one in variables.items() if name != 'params'}
  draw = lambda key: by_path(nn.meta.unbox(make(key).get('params', {})))[0]
  call = linen_plug.call_of(plain, nn.meta.unbox(params), held, part, kwargs, streams, None,
                            nn.DenyList('params'))
  return call, draw


def _function(function, part, kwargs, init, key: Key):
  if init is None:
    raise TheoryError('of a function the parameters are not known. Say init=params, or better a '
                      'function that draws them: init=lambda key: {...}.')
  params = init(key) if callable(init) else init
  leaves, keys = by_path(params)
  structure, order = jax.tree.structure(params), list(leaves)
  arrays, _, rebuild = split(part, kwargs)

  def run(leaves, held, arrays):
    del held
    args, options = rebuild(arrays)
    return function(jax.tree.unflatten(structure, [leaves[path] for path in order]), *args,
                    **options), ()

  draw = (lambda key: by_path(init(key))[0]) if callable(init) else None
  return Call(getattr(function, '__name__', 'the function'), run, leaves, keys, (), arrays), draw
