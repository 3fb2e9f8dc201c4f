"""Names that the ops leave in a model's jaxpr, for whoever looks for them there."""
import contextlib
import contextvars
from collections.abc import Iterator, Sequence

from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from bioprop.typing import Array, Params

_PREFIX = 'bioprop '
_INPUT, _OUTPUT, _WEIGHT = (f'{_PREFIX}{what}:' for what in ('input', 'output', 'weight'))


# Whether ops name their inputs and outputs also where a rule acts on them.
_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar('marks', default=False)


@contextlib.contextmanager
def marked() -> Iterator[None]:
  """Lets plugged models name the inputs and outputs of their ops."""
  token = _wanted.set(True)
  try:
    yield
  finally:
    _wanted.reset(token)


def wanted() -> bool:
  """Whether names are asked for where a rule acts."""
  return _wanted.get()


def mark_input(x: Array, label: str) -> Array:
  """Names an op's input; the value is unchanged."""
  return checkpoint_name(x, _INPUT + label)


def mark_output(y: Array, label: str) -> Array:
  """Names an op's output."""
  return checkpoint_name(y, _OUTPUT + label)


def mark_weights(params: Params, weights: Sequence[str], path: str) -> Params:
  """Names an op's weights."""
  at = f'{path}/' if path else ''  # The layer may be the whole model.
  return {name: checkpoint_name(w, f'{_WEIGHT}{at}{name}') if name in weights else w
          for name, w in params.items()}


def is_mark(primitive, params) -> bool:
  """Whether a primitive with these parameters is one of our names."""
  return primitive.name == 'name' and params['name'].startswith(_PREFIX)


def input_of(primitive, params) -> str | None:
  """The label of an op whose input is named here, None if it is something else."""
  return _label(primitive, params, _INPUT)


def output_of(primitive, params) -> str | None:
  """The label of an op whose output is named here."""
  return _label(primitive, params, _OUTPUT)


def weight_of(eqn: core.JaxprEqn) -> str | None:
  """The path of a weight that is named here."""
  return _label(eqn.primitive, eqn.params, _WEIGHT)


def _label(primitive, params, prefix: str) -> str | None:
  if primitive.name != 'name' or not params['name'].startswith(prefix):
    return None
  return params['name'].removeprefix(prefix)
