"""The mistakes that bioprop knows by name: one class each, so that callers can catch just one.

Below the classes stand the messages that several places share, and the longest ones of the fronts.

Every message is one paragraph: what happened, the value, why it cannot work, and the line to type.
"""
import contextlib
from collections.abc import Iterator
from typing import Any

import jax


class BiopropError(Exception):
  """Base of all errors that bioprop raises on purpose."""


class UnknownRuleError(BiopropError, ValueError):
  """No learning rule has this name."""


class RuleOptionError(BiopropError, ValueError):
  """A learning rule was given an option that it does not have, or a value outside its range."""


class RuleContractError(BiopropError, TypeError):
  """A rule's `backward` returned something of the wrong structure, shape or dtype."""


class PatternError(BiopropError, ValueError):
  """A choice of rules leaves a layer without a rule, or names a layer that is not there."""


class NothingMatchedError(BiopropError, ValueError):
  """The model has no layer that a learning rule could apply to."""


class FeedbackMissingError(BiopropError, ValueError):
  """The feedback weights (or the random stream) that the rule needs were not passed to `apply`."""


class PluggedError(BiopropError, ValueError):
  """A model that has a learning rule was given another."""


class UnsupportedLayerError(BiopropError, ValueError):
  """A layer is used in a way in which a rule cannot act on it."""


class RecurrenceError(BiopropError, ValueError):
  """A rule of recurrent networks was given one in which it cannot act."""


class OutputError(BiopropError, ValueError):
  """The model's output is not the one array whose error a rule could broadcast."""


class ErrorShapeError(BiopropError, ValueError):
  """The error at the output cannot be broadcast to a layer: their batch axes do not match."""


class FeedbackMemoryError(BiopropError, ValueError):
  """The feedback of one layer would take more memory than its rule allows."""


class UnboundError(BiopropError, RuntimeError):
  """A gradient was asked of a plugged model that was not run through `apply`."""


class ForwardModeError(BiopropError, TypeError):
  """A derivative in forward mode was asked of a plugged model, whose gradients have none."""


class SampleError(BiopropError, ValueError):
  """A model was given no sample of its inputs, or one that it cannot be called on."""


class MeasureError(BiopropError, ValueError):
  """A measurement was given what it cannot measure."""


class ConfigError(BiopropError, ValueError):
  """A run's configuration names something that does not exist or cannot work."""


class DataError(BiopropError):
  """A dataset is missing, cannot be read, or is too small for what is asked of it."""


class CacheError(DataError):
  """The cache of decoded images is damaged."""


class WorkdirError(BiopropError):
  """The working directory cannot be used for this run."""


class InUseError(WorkdirError):
  """Another process holds the directory."""


class CheckpointError(BiopropError):
  """A checkpoint cannot be read, or is not what was written."""


class DistributedError(BiopropError):
  """A process of a run that several share failed."""


class LostProcessError(DistributedError):
  """A process of a run that several share is gone, and the others cannot go on without it."""


class DivergedError(BiopropError, ArithmeticError):
  """The loss became infinite or NaN."""


class TheoryError(BiopropError, ValueError):
  """A prediction of theory was asked for of what it does not hold for, or cannot be computed."""


class ConvergenceError(TheoryError):
  """A solution of the theory is not as accurate as was asked for."""


@contextlib.contextmanager
def refusing_forward_mode() -> Iterator[None]:
  """Raises ForwardModeError where JAX says that a `custom_vjp` has no forward mode."""
  try:
    yield
  except TypeError as error:
    if 'forward-mode' not in str(error) or isinstance(error, BiopropError):
      raise
    raise ForwardModeError(
        'a derivative of a plugged model was asked for in forward mode (jax.jvp, jax.jacfwd, '
        'jax.linearize, jax.hessian), and a rule says only how errors go back: its '
        'pseudogradients are the derivatives of no function. Take them in reverse mode, jax.grad, '
        'jax.vjp or jax.jacrev, or as bioprop.measure.jacobians(model, x).pseudo(variables). For '
        'true derivatives call the plain model, without bioprop.plug, as in '
        'jax.hessian(lambda params: loss(plain.apply({\'params\': params}, x))).') from error


@contextlib.contextmanager
def refusing_samples(name: str, sample: Any) -> Iterator[None]:
  """Raises SampleError where a model fails that is called on a sample.

  Args:
    name: the model's, for the message.
    sample: its arguments.
  """
  try:
    yield
  except BiopropError:
    raise
  except Exception as error:  # Whatever the user's model raises.
    raise SampleError(
        f'{name} cannot be called on {shapes(sample)}: {type(error).__name__} (see above). Give '
        f'one batch of its inputs, of the shapes and with the keyword arguments that it is trained '
        f'on, for instance x, train=False with x = jnp.zeros((8, 784)); of NNX, in the mode that '
        f'it is trained in: model.train().') from error


def require_sample(name: str, *arguments: Any) -> None:
  """Raises SampleError if there is no array among the arguments of a model's call."""
  if not any(hasattr(leaf, 'shape') for leaf in jax.tree.leaves(arguments)):
    raise SampleError(
        f'{name} must know the shapes of the model\'s inputs, and was given '
        f'{shapes(arguments[0])}. Give it one batch, arrays or jax.ShapeDtypeStructs, as the '
        f'model is called: bioprop.{name}(..., x).')


def no_sample(rule: str) -> FeedbackMissingError:
  """What is said where a rule must know the shapes inside an NNX model."""
  return FeedbackMissingError(
      f'{rule} must know the shapes inside the network and of its output, and plug was given no '
      f'sample of the model\'s input. Give it one batch, after the rngs, and the arguments with '
      f'which the model is called: bioprop.plug(model, rule, rngs, x), or '
      f'bioprop.flags.plug(model, x).')


def no_streams() -> FeedbackMissingError:
  """What is said where a rule draws feedback of an NNX model, and is given no random streams."""
  return FeedbackMissingError(
      'this rule draws feedback weights at random, and plug was given no rngs. Give it some: '
      'bioprop.plug(model, rule, nnx.Rngs(0)).')


def odd_streams(given: Any) -> TypeError:
  """What is said where something else stands in the place of random streams."""
  return TypeError(
      f'bioprop.plug draws feedback from its third argument, and got {shapes(given)}. The sample '
      f'comes after it: bioprop.plug(model, rule, nnx.Rngs(0), x).')


def other_streams(names: list[str]) -> FeedbackMissingError:
  """What is said of random streams among which feedback's is not."""
  return FeedbackMissingError(
      f'feedback is drawn from the stream \'feedback\' of the rngs, or from \'default\', and they '
      f'have only {names}. Give plug others: bioprop.plug(model, rule, nnx.Rngs(feedback=0)).')


def plugged_already(at: str, rule: str) -> PluggedError:
  """What is said where a model, or its module at a place, has a rule."""
  return PluggedError(
      f'the model{at} {rule} already, and two rules cannot both act on its weights. Take that out '
      f'first: bioprop.unplug(model); or mix rules in one choice: '
      f'{{\'conv*\': \'fa\', \'*\': \'dfa\'}}.')


def not_plugged(model: str, part: str) -> PluggedError:
  """What is said where a model is to be described whose part alone was plugged."""
  return PluggedError(
      f'{model} was not plugged, and its module at {part!r} was, alone or in another model. '
      f'Describe that: bioprop.describe(plugged, None, x).')


def not_described(model: Any) -> TypeError:
  """What is said of models that `describe` does not take, such as functions."""
  return TypeError(
      f'bioprop.describe takes a flax.linen or an nnx module, and got {type(model)}. Of a '
      f'function, what bioprop.plug(function, rule).init_feedback(key, params, x) returns has an '
      f'entry for each weight that sends errors back.')


def shapes(sample: Any) -> str:
  """The dtypes and shapes of all arrays of a sample, for a message."""
  leaves = jax.tree.leaves(sample, is_leaf=lambda leaf: leaf is None)
  return ', '.join(f'{leaf.dtype}{list(leaf.shape)}' if hasattr(leaf, 'dtype') else repr(leaf)
                   for leaf in leaves) or 'nothing'
