"""The mistakes that bioprop knows by name: one class each, so that callers can catch just one.

Every message is one paragraph: what happened, the value, why it cannot work, and the line to type.
"""


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


class OutputError(BiopropError, ValueError):
  """The model's output is not the one array whose error a rule could broadcast."""


class ErrorShapeError(BiopropError, ValueError):
  """The error at the output cannot be broadcast to a layer: their batch axes do not match."""


class FeedbackMemoryError(BiopropError, ValueError):
  """The feedback of one layer would take more memory than its rule allows."""


class UnboundError(BiopropError, RuntimeError):
  """A gradient was asked of a plugged model that was not run through `apply`."""


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
