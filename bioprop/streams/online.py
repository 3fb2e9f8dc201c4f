"""online: a recurrent model that learns from a stream, in memory that does not grow with it."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from bioprop.errors import RecurrenceError
from bioprop.fronts.function import Returned
from bioprop.fronts.linen import beside
from bioprop.fronts.nnx_effects import LEARNED, PLUG
from bioprop.fronts.plug import plug
from bioprop.network.store import nested
from bioprop.probes.fronts import make_model
from bioprop.probes.model import Model, Values, shapes_of
from bioprop.rules import AnyRule
from bioprop.streams.fit import check_rules, stream_of
from bioprop.streams.step import Arguments, Carry
from bioprop.streams.stream import Stream, Traces
from bioprop.typing import Array, Key, PyTree

Module = TypeVar('Module', bound=nn.Module | nnx.Module)

_TRIED = 3  # Steps on which a stream is compared with the model once, before it starts.


class State(NamedTuple):
  """What a stream remembers from one step to the next; a tree of arrays, to be jitted and saved.

  Attributes:
    carry: what the model's own loop carries.
    traces: eligibility traces, of each of its parameters.
  """
  carry: Carry
  traces: Traces


class Step(NamedTuple):
  """What one step gives.

  Attributes:
    loss: its value at this step.
    output: the model's, [n, ...], of this step.
    grads: the pseudogradients, shaped like the parameters: of a linen model as `params`, of an NNX
      model as `nnx.grad` gives them. Their sum over steps is the rule's gradient of the summed
      loss, where the parameters stay the same.
    state: for the next step.
  """
  loss: Array
  output: Array
  grads: PyTree
  state: State


def online(model: Module, rule: AnyRule | str | Mapping[str, Any] | None = None,
           **kwargs: Any) -> 'Online[Module]':
  """Makes a step function for streams out of a recurrent model of whole sequences.

    stream = bioprop.online(MyRNN(), 'rflo')
    variables = stream.model.init(key, x[:, None])
    state = stream.init(variables, x)                       # x [n, ...], one step
    for x, y in steps:
      loss, out, grads, state = step(variables, state, x, y)

  with step = jax.jit(lambda v, s, x, y: stream.step(v, s, x, lambda out: loss(out, y))). Activities
  are not stored: eligibility traces go forward in time in their place (Murray 2019; Bellec et al.
  2020), [n, inputs, neurons] for each matrix of the cell, however long the stream.

  It takes models whose one recurrent layer is an `nn.RNN`, `nnx.RNN`, `nn.scan` or `lax.scan` over
  axis 1, with cells whose neurons hear each other through matrices alone (SimpleCell, GRU, LSTM,
  OptimizedLSTM, MGU, and cells that users write so), fed by data, under `rflo` and `eprop`; and
  under `bp` cells without recurrent matrices, whose neurons remember by themselves: there it is
  exact real-time recurrent learning (RTRL).

  Args:
    model: a linen module, plain or plugged, or an NNX module that is plugged already.
    rule: for a plain linen module, as in `bioprop.plug`; None for a plugged one.
    **kwargs: the model's keyword arguments, such as train=False.

  Raises:
    PluggedError, UnknownRuleError, RuleOptionError, PatternError: as `bioprop.plug`.
    TypeError: if it is no model, or an NNX model is given a rule.
  """
  if isinstance(model, nnx.Module):
    if rule is not None or PLUG not in vars(model):
      raise TypeError(
          f'bioprop.online takes an NNX model that is plugged already, and no rule beside it. For '
          f'this {type(model).__name__}, type bioprop.online(bioprop.plug(model, '
          f'{rule or "rflo"!r}, nnx.Rngs(0), x)), with x [n, 1, ...].')
  elif isinstance(model, nn.Module) and rule is not None:
    model = plug(model, rule)
  own = getattr(model, PLUG, None)
  if own is None:
    raise TypeError(f'bioprop.online takes a flax.linen module and a rule, or a plugged model, and '
                    f'got {model!r}. Type for instance bioprop.online(model, \'rflo\').')
  check_rules(own.choice)
  return Online(model, kwargs)


@dataclasses.dataclass(frozen=True)
class Online(Generic[Module]):
  """A model on streams; see `online`.

  Attributes:
    model: the plugged model, of sequences [n, T, ...].
    kwargs: its keyword arguments.
  """
  model: Module
  kwargs: Mapping[str, Any]

  def init(self, variables: PyTree, x: Array) -> State:
    """The state before the first step. The stream is compared with the model, on three steps.

    Args:
      variables: what `init` of the plugged linen model returned; the NNX model itself.
      x: input of one step, [n, ...].

    Raises:
      RecurrenceError: if the model's credit cannot be assigned forward in time, by name.
      FeedbackMissingError, MeasureError: if the variables are not the model's.
    """
    run = self._at(variables, x)
    carry = jax.jit(run.stream.start)(run.arguments)  # All that it does not need is left out.
    state = State(carry, run.stream.fresh(carry))
    self._check(run, variables, x, state)
    return state

  def step(self, variables: PyTree, state: State, x: Array,
           loss: Callable[[Array], Array]) -> Step:
    """One step of a stream; pure, to be jitted.

    Args:
      variables: as for `init`.
      state: before the step.
      x: input, [n, ...].
      loss: maps the model's output at this step, [n, ...], to a number.

    Raises:
      RecurrenceError: as `init`.
    """
    run = self._at(variables, x)

    def of(out):
      output = run.output(out)
      return loss(output), output

    (value, output), (grads, feedback), (carry, traces) = run.stream.step(
        run.arguments, state.carry, state.traces, of)
    return Step(value, output, run.grads(grads, feedback), State(carry, traces))

  def _at(self, variables: PyTree, x: Array) -> '_Run':
    if not hasattr(x, 'shape') or len(x.shape) < 1:
      raise RecurrenceError(f'a step of a stream is an array [n, ...], and this is {x!r}.')
    x = jnp.expand_dims(x, 1)
    model = make_model('online', self.model, (shapes_of(x),), None, self.kwargs)
    values = model.split(variables)
    call, returned = model.call(values, (x,)), Returned()
    layered = model.seen(values, (x,), returned)
    stream = stream_of(layered, call.name)
    weights, _ = model.plug.unpacked(layered, call, values.stored)
    two = model.call(values, (jax.ShapeDtypeStruct((x.shape[0], 2, *x.shape[2:]), x.dtype),))
    outs = jax.tree.leaves(jax.eval_shape(two.function, two.params, two.held, two.inputs)[0])
    if len(outs) != 1:
      raise RecurrenceError(
          f'{call.name} returns {len(outs)} arrays, and a stream learns from one output. Return it '
          f'alone.')
    return _Run(model, values, stream, Arguments(call.params, call.held, call.inputs, weights),
                outs[0].shape[1:2] == layered.traced.out[0][0].shape[1:2], returned,
                variables if isinstance(variables, nnx.Module) else None)

  def _check(self, run: '_Run', variables: PyTree, x: Array, state: State) -> None:
    """Raises RecurrenceError where the stream is not the model, tried once."""
    name, key = type(self.model).__name__, jax.random.key(0)
    xs = jnp.stack([_drawn(key, i, x) for i in range(_TRIED)], 1)
    model = make_model('online', self.model, (shapes_of(xs),), None, self.kwargs)
    whole = model.call(model.split(variables), (xs,))

    @jax.jit
    def tried(arguments, carry, params, held, inputs):
      near = [_drawn(key, _TRIED + i, a) for i, a in enumerate(carry)]
      mixing, outs = run.stream.mixing(arguments, near, key), []
      for one in inputs[1:]:
        out, once = run.stream.run(dataclasses.replace(arguments, inputs=one), carry)
        carry = once.after
        outs.append(run.output(out))
      return mixing, outs, jax.tree.leaves(whole.function(params, held, inputs[0])[0])[0]

    mixing, outs, wanted = tried(run.arguments, state.carry, whole.params, whole.held, [
        whole.inputs, *(run.model.call(run.values, (xs[:, i:i + 1],)).inputs
                        for i in range(_TRIED))])
    mixed = [what for what, own in mixing.items() if own]
    if mixed:
      raise RecurrenceError(
          f'in the cell of {name}, neurons hear each other elsewhere than through recurrent '
          f'matrices: {", ".join(mixed)} change(s) what other neurons remember, as under a '
          f'normalisation over neurons. Traces are kept for neurons that do not. Use the rule '
          f'offline, on whole sequences: bioprop.plug(model, ...).')
    got = outs[-1] if run.last else jnp.stack(outs, 1)
    close = 1e-3 + 8 * float(jnp.finfo(wanted.dtype).eps)
    tolerance = close * float(jnp.max(jnp.abs(wanted))) + 1e-6
    if got.shape != wanted.shape or float(jnp.max(jnp.abs(got - wanted))) > tolerance:
      raise RecurrenceError(
          f'on three steps, the output of {name} is another than step by step: it depends on more '
          f'than an input and what the loop carries, as under convolutions, attention or means '
          f'over time. Let the model return its output at every step, or at the last. Use the rule '
          f'offline, on whole sequences: bioprop.plug(model, ...).')


def _drawn(key: Key, number: int, like: Array) -> Array:
  """Numbers of the size of activities, in place of an array of numbers."""
  if not jnp.issubdtype(like.dtype, jnp.inexact):
    return like
  return jax.random.normal(jax.random.fold_in(key, number), like.shape, like.dtype) / 2


@dataclasses.dataclass(frozen=True)
class _Run:
  """The model at one step.

  Attributes:
    model, values, stream, arguments: as they are called.
    last: the model's output has no axis of time: it is that of the last step.
    returned: told of what the model returns.
    owner: the NNX model.
  """
  model: Model
  values: Values
  stream: Stream
  arguments: Arguments
  last: bool
  returned: Returned
  owner: nnx.Module | None

  def output(self, out: PyTree) -> Array:
    """The output of the step, of what the traced function returned."""
    whole, = jax.tree.leaves(self.returned.restore(out[0]))
    return whole if self.last else whole[:, 0]

  def grads(self, params: Mapping[str, Array], feedback: Mapping[str, Array]) -> PyTree:
    """Gradients by path as the model's own loop takes them."""
    keys = self.model.keys
    learned = {path: g for path, g in feedback.items() if self.model.plug.choice.learns_at(path)}
    if self.owner is None:
      tree = {keys[path]: g for path, g in params.items()}
      return nested({**tree, **{beside(keys[path]): g for path, g in learned.items()}})
    by_keys = {keys[path]: g for path, g in params.items()}
    for weight, at in vars(self.owner).get(LEARNED, ()):
      by_keys[at] = next(g for path, g in learned.items() if keys[path] == weight)
    state = nnx.to_flat_state(nnx.state(self.owner, nnx.Param))
    return nnx.from_flat_state([(path, variable.replace(by_keys[tuple(map(str, path))]))
                                for path, variable in state])
