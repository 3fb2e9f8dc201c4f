"""Runs of a whole NNX model: one that only watches, and those that bring the error to the layers.

The plugged model's own `__call__` is where the error is: it gives each layer an empty port in the
model's state, lets the model run, and ties the ports that the layers have left to the output. As
the ports are state, Flax's transforms carry them as they carry batch statistics.
"""
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax.extend import core

from bioprop.errors import FeedbackMissingError, OutputError
from bioprop.plug import activity
from bioprop.plug.arguments import split
from bioprop.plug.leaks import refuse_leaks
from bioprop.plug.nnx_layer import (
  PLAN,
  PORT,
  Plan,
  Port,
  Watcher,
  plugged_class,
  subclass,
  watching,
)
from bioprop.plug.output import Where, locate, replace
from bioprop.plug.readouts import readouts
from bioprop.rules import Rule
from bioprop.rules.credit import tap
from bioprop.typing import PyTree

OUTPUT = '_bioprop_output'  # The attribute of a plugged model that says where its output is.
_watches = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Sample:
  """The arguments of a model's call."""
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a model did on a sample.

  Attributes:
    ran: whether there was a sample.
    inputs: shape and dtype of each op's input, by (path, op).
    error: shape and dtype of the model's output.
    phi: the nonlinearity after each op, by (path, op), where a rule needs it.
    readouts: the (path, op) of ops that are readouts, where a rule needs to know.
    auxiliaries: of those that reach another of the model's outputs so.
  """
  ran: bool
  inputs: Mapping[tuple[str, str], jax.ShapeDtypeStruct]
  error: jax.ShapeDtypeStruct | None = None
  phi: Mapping[tuple[str, str], activity.Activation] = dataclasses.field(default_factory=dict)
  readouts: frozenset[tuple[str, str]] = frozenset()
  auxiliaries: frozenset[tuple[str, str]] = frozenset()

  def after(self, path: str) -> dict[str, Any]:
    """The fields of a layer's `Plan` that say what follows its ops."""
    own = {op: phi for (layer, op), phi in self.phi.items() if layer == path}
    ops = lambda found: tuple(sorted(op for layer, op in found if layer == path))
    return {'activations': own, 'phi': tuple(f'{op}:{phi.name}' for op, phi in own.items()),
            'readouts': ops(self.readouts), 'auxiliaries': ops(self.auxiliaries)}


def watch(model: nnx.Module, layers: list[tuple[nnx.Module, str, Rule]], sample: Sample,
          output: Where) -> Seen:
  """Runs the model abstractly by no rule, and notes what reaches its layers.

  Args:
    model: the model, without a rule.
    layers: its layers, their paths, and the rules that they will have.
    sample: the model's arguments.
    output: where the model's output is.

  Raises:
    FeedbackMissingError: if a rule needs a sample and there is none.
    OutputError: if the model cannot be called, or a rule broadcasts the error and the output is
      not one array.
    ActivationError: if a rule needs a nonlinearity that is ambiguous.
    UnsupportedLayerError: if the model uses a weight past its layer.
  """
  reads = any(rule.reads_error for _, _, rule in layers)
  if not (sample.args or sample.kwargs):
    if reads:
      name = next(type(rule).__name__ for _, _, rule in layers if rule.reads_error)
      raise FeedbackMissingError(
          f'{name} brings the error at the model\'s output to each layer\'s input, so install must '
          f'know the shapes of both, and was given no sample of the model\'s input. Give it one '
          f'batch, after the rngs, and the arguments with which the model is called: '
          f'bioprop.install(model, rule, rngs, x), or bioprop.from_flags(model, x).')
    return Seen(False, {})
  if not callable(model):
    raise OutputError(
        f'install runs the model on its sample by calling it, and {type(model).__name__} has no '
        f'__call__: a rule that broadcasts the error finds the error at the output of that call. '
        f'Give the model a method def __call__(self, x), or choose a rule that needs no sample: '
        f'bioprop.install(model, \'fa\', rngs).')
  closed, out, watcher = trace(model, layers, sample)
  refuse_leaks(closed)
  if not reads:
    return Seen(True, watcher.inputs)
  position, leaf = locate(out, output)
  rules = {path: rule for _, path, rule in layers}
  named = watcher.labels
  phi = activity.activations(closed, lambda label: rules[named[label][0]].needs_activation)
  last, aside = (frozenset(named[label] for label in labels if rules[named[label][0]].needs_readout)
                 for labels in readouts(closed, position))
  return Seen(True, watcher.inputs, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
              {named[label]: function for label, function in phi.items()}, last, aside)


def trace(model: nnx.Module, layers: list[tuple[nnx.Module, str, Rule]], sample: Sample
          ) -> tuple[core.ClosedJaxpr, PyTree, Watcher]:
  """The model's jaxpr with its ops marked, its output's shapes, and what reached the ops.

  Args:
    model: the model, without a rule; it is as it was when this returns.
    layers: its layers, their paths, and any rules.
    sample: the model's arguments.
  """
  watcher = Watcher()
  kept = [(layer, type(layer)) for layer, _, _ in layers]
  try:
    let_watch(layers)
    run, inputs = _pure(model, type(model).__call__, sample)
    token = watching.set(watcher)
    try:
      closed, out = jax.make_jaxpr(run, return_shape=True)(*inputs)
    finally:
      watching.reset(token)
  finally:
    for layer, cls in kept:
      object.__setattr__(layer, '__class__', cls)
      delattr(layer, PLAN)
  return closed, out, watcher


def let_watch(layers: Iterable[tuple[nnx.Module, str, Rule]]) -> None:
  """Swaps the layers' classes for ones that tell a `Watcher` and mark their ops."""
  number = next(_watches)
  for layer, path, rule in layers:
    setattr(layer, PLAN, Plan(path, rule, watch=number))
    object.__setattr__(layer, '__class__', plugged_class(type(layer)))


@functools.cache
def root_class(plain: type[nnx.Module]) -> type[nnx.Module]:
  """The class of a whole model whose rule broadcasts its error."""

  @functools.wraps(plain.__call__)
  def call(self, *args, **kwargs):
    return _broadcast(self, plain.__call__, Sample(args, kwargs))

  body = {'__call__': call, '_bioprop_plain': getattr(plain, '_bioprop_plain', plain)}
  return subclass(plain, (plain,), body)


def _broadcast(model: nnx.Module, call: Callable[..., Any], sample: Sample) -> Any:
  """Calls the model, and ties its layers' ports to its output."""
  plain_call = lambda: call(model, *sample.args, **sample.kwargs)
  if watching.get() is not None:
    return plain_call()
  # Layers find their ports still empty here, and run by no rule.
  run, inputs = _pure(model, call, sample)
  output = getattr(model, OUTPUT)
  error = locate(jax.eval_shape(run, *inputs), output)[1]
  ports = [(node, getattr(node, PORT)) for _, node in nnx.iter_graph(model, graph=True)
           if isinstance(node, nnx.Module) and PORT in vars(node)]
  try:
    try:
      for layer, port in ports:
        # Not written into the state's own, which nnx.merge may have left in another trace.
        setattr(layer, PORT, Port(jnp.zeros((*port.shape[:-1], *error.shape), error.dtype)))
    except TraceContextError:  # A transformed function closes over the model: no gradient is asked.
      _put_back(ports)
      return plain_call()
    out = plain_call()
    position, leaf = locate(out, output)
    return replace(out, position, tap(leaf, [getattr(layer, PORT)[...] for layer, _ in ports]))
  finally:
    _put_back(ports)


def _put_back(ports: list[tuple[nnx.Module, Port]]) -> None:
  for layer, port in ports:
    if getattr(layer, PORT) is not port:
      setattr(layer, PORT, port)


def _pure(model: nnx.Module, call: Callable[..., Any], sample: Sample):
  """The model's call as a pure function of arrays, and its arguments.

  NNX objects among the arguments (nnx.Rngs) are copied with the model, so that their state stays
  as it is; what is no array (train=True) stays as it is.
  """
  arrays, nodes, rebuild = split(sample.args, sample.kwargs)
  graphdef, state = nnx.split((model, nodes), graph=True)

  def run(state, arrays):
    copy, others = nnx.merge(graphdef, state)
    args, kwargs = rebuild({**others, **arrays})
    return call(copy, *args, **kwargs)

  return run, (state, arrays)
