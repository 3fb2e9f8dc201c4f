"""What a learning rule is: read this file and you can write one.

A rule acts where a parameter meets data in a product. Each such place is an *op*, affine in its
input and affine in its parameters, y = op(params, x): a dense layer, a convolution, a lookup in an
embedding, or any product that a model writes by itself. On the backward pass the op is handed the
cotangent g of its output (and, for rules that broadcast it, the error e at the network's output),
and the rule answers two questions: how do my parameters change, and what do I send to whatever
produced my input? Everything between two ops (nonlinearities, pooling, normalisation, residual
additions) is differentiated by JAX as it is. So a rule never mentions a layer type, and a layer
type never mentions a rule.

To add one: subclass `Rule` as a frozen dataclass in a file of its own, and add a row to `RULES`.
Its docstring becomes a page of the site, so it has the parts that the others have.
"""
import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import RuleOptionError
from bioprop.typing import Array, Key, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Op:
  """One product of a parameter with data, as a pure function.

  Attributes:
    function: maps (params, x) to y; affine in each of the two.
    weights: the name of the parameter that multiplies x, as in ('kernel',); the other in `params`,
      if there is one, is added: 'bias', or 'added' where that is the weight's own name.
    activation: the elementwise nonlinearity phi that follows the op, so that the post-synaptic
      activity is phi(y); only for rules with `needs_activation`, None otherwise.
    readout: the op's output reaches the network's output through no other op; only for rules with
      `needs_readout`, False otherwise.
    auxiliary: it so reaches only another of the model's outputs, which the loss may use or not.
    recurrent: which entries of x come out of this op again, one step of time later: all, none, or
      those of a mask that broadcasts to x; only for rules with `needs_time`, False otherwise.
    own: keeps of an array shaped like the weight the entries by which a recurrent neuron meets
      itself (W's diagonal), zeros elsewhere; only for rules that say `meets_itself`.
    features: the weight's axis along which the features of the output lie, the last of several;
      None where it has none, as a vector that is contracted with x.
  """
  function: Callable[[Params, Array], Array]
  weights: tuple[str, ...]
  activation: Callable[[Array], Array] | None = None
  readout: bool = False
  auxiliary: bool = False
  recurrent: bool | np.ndarray = False
  own: Callable[[Array], Array] | None = None
  features: int | None = -1

  def __call__(self, params: Params, x: Array) -> Array:
    return self.function(params, x)

  def update(self, params: Params, x: Array, g: Array) -> Params:
    """The gradient of <g, op(params, x)> in params: pre-synaptic x times cotangent g."""
    return jax.vjp(lambda p: self.function(p, x), params)[1](g)[0]

  def send(self, weights: Params, params: Params, x: Array, g: Array) -> Array | None:
    """Sends g [like y] to the op's input through `weights` in place of its own: [like x].

    The primal of the vjp is unused, so XLA drops it: no forward pass is repeated.
    Returns None where x holds integers (token ids), which take no cotangent.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return None
    return jax.vjp(lambda x: self.function({**params, **weights}, x), x)[1](g)[0]


@dataclasses.dataclass(frozen=True)
class Site:
  """The place in a network where a rule is applied, when its feedback is made.

  Attributes:
    path: the layer's path in the model, such as 'encoder/Dense_0'.
    op: the layer's op.
    params: the layer's parameters as they are now; at initialisation this is W(0).
    redraw: maps a key to a fresh, independent draw of `params` from the layer's own initialisers.
    x: shape and dtype of the op's input; None where they are not known yet (`plug` of an NNX
      model without a sample, for rules that do not read the error).
    error: shape and dtype of the error at the network's output; None unless `reads_error`.
    weight: shape and dtype of the op's weight in a call, one layer's of a stack; None where what is
      made is shaped like the parameter.
  """
  path: str
  op: Op
  params: Params
  redraw: Callable[[Key], Params]
  x: jax.ShapeDtypeStruct | None
  error: jax.ShapeDtypeStruct | None
  weight: jax.ShapeDtypeStruct | None = None

  @property
  def sends(self) -> bool:
    """Whether the op's input can take a cotangent at all (token ids cannot)."""
    return self.x is None or jnp.issubdtype(self.x.dtype, jnp.inexact)

  def draw(self, key: Key, scale: float) -> Params | None:
    """Fresh weights of the op times `scale`, shaped like it; None if it sends nothing."""
    if not self.sends:
      return None
    drawn = self.redraw(key)
    return {name: jax.tree.map(lambda w: scale * w, drawn[name]) for name in self.op.weights}


class Credit(NamedTuple):
  """What a rule answers on the backward pass; None stands for zeros.

  Attributes:
    params: the pseudogradient of the op's parameters, structured like them.
    x: what is sent to the op's input, shaped like it.
    feedback: the pseudogradient of the feedback, for rules whose feedback learns.
  """
  params: Params
  x: Array | None
  feedback: PyTree | None = None


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
  """A learning rule: immutable, hashable, compared by value; its fields are its options.

  Class attributes:
    papers: keys of what there is to cite, in papers.bib (bioprop.citation).
    reads_error: `backward` needs e, the cotangent of the network's output.
    learns: feedback shaped like the weights is a parameter: it lives in `params` and the optimiser
      moves it.
    learns_direct: names of other feedback that is a parameter too, where the rule `learns`.
    redraws: `backward` needs a random key, new at each call (`rngs={'feedback': key}`): it is
      feedback['key'], beside what `init_feedback` made.
    needs_activation: `backward` needs `op.activation`.
    needs_readout: `backward` needs `op.readout` and `op.auxiliary`.
    needs_time: the rule is of recurrent networks: `backward` needs `op.recurrent`, and networks
      without a recurrent op are refused; `rules.temporal.Temporal` has the rest of it.
    sends: False: nothing is ever sent to an op's input, so that what lies below is not
      differentiated at all.
    linear: the pseudogradients are linear in the error.
    multiplies: the pseudogradient of an op's parameters is always `op.update(params, x, g)`, its
      input times the cotangent that arrived; measurements of such rules are faster.
    exact: the rule is backprop, and the layer is best left as it is.
  """
  papers: ClassVar[tuple[str, ...]] = ()
  reads_error: ClassVar[bool] = False
  learns: ClassVar[bool] = False
  learns_direct: ClassVar[tuple[str, ...]] = ()
  redraws: ClassVar[bool] = False
  needs_activation: ClassVar[bool] = False
  needs_readout: ClassVar[bool] = False
  needs_time: ClassVar[bool] = False
  sends: ClassVar[bool] = True
  linear: ClassVar[bool] = True
  multiplies: ClassVar[bool] = False
  exact: ClassVar[bool] = False

  @property
  def keeps_feedback(self) -> bool:
    """Whether `init_feedback` makes anything."""
    return type(self).init_feedback is not Rule.init_feedback

  def init_feedback(self, key: Key, site: Site) -> dict[str, PyTree] | None:
    """Makes the feedback of one site, by name; None (the default) for rules without any."""
    del key, site
    return None

  def sent_through(self, weights: Params, feedback: PyTree | None) -> Params | None:
    """The matrices B through which g is sent to an op's input, for measurements.

    Args:
      weights: the op's, as they are now.
      feedback: what `init_feedback` made, as it is now.

    Returns:
      B by the name of each weight, shaped like it; None (the default) where nothing is sent, or
      something that is no product of g with one matrix.
    """
    del weights, feedback
    return None

  @abc.abstractmethod
  def backward(
      self, op: Op, params: Params, x: Array, feedback: PyTree, g: Array, e: Array | None
  ) -> Credit:
    """Assigns credit at one op.

    Args:
      op: the layer.
      params: its parameters.
      x: its input, [n, ...].
      feedback: what `init_feedback` made, and 'key' where the rule `redraws`; None where there is
        none, as x takes no cotangent (it is made of token ids or pixels of integers).
      g: the cotangent that arrived at its output, shaped like y.
      e: the error, that is the cotangent of the network's output, [n, ...]; it contains the loss's
        reduction (1/n under a mean). None unless the rule `reads_error`.

    Returns:
      The credit for the op's parameters, input and feedback.
    """


class SendingRule(Rule):
  """Sends g through the matrices of `sent_through`: what is kept, unless that is overridden."""
  multiplies = True

  def sent_through(self, weights: Params, feedback: PyTree | None) -> Params | None:
    """B; see `Rule.sent_through`."""
    del weights
    return feedback

  def backward(self, op: Op, params: Params, x: Array, feedback: PyTree, g: Array,
               e: Array | None) -> Credit:
    """The op's own weight gradient; g sent through B; see `Rule.backward`."""
    del e
    dx = None
    sends = feedback is not None or not self.keeps_feedback
    if sends and jnp.issubdtype(x.dtype, jnp.inexact):
      b = self.sent_through({name: params[name] for name in op.weights}, feedback)
      dx = op.send(b, params, x, g)
    return Credit(op.update(params, x, g), dx)


def check_range(rule: Rule, name: str, low: float, high: float = float('inf')) -> None:
  """Raises RuleOptionError unless the rule's number `name` lies in [low, high]."""
  value = getattr(rule, name)
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or not low <= value <= high or math.isinf(value):
    bounds = f'in [{low:g}, {high:g}]' if high < float('inf') else f'at least {low:g} and finite'
    raise RuleOptionError(
        f'{type(rule).__name__} got {name}={value!r}, but {name} must be a number {bounds}. '
        f'Give it as bioprop.make(..., {name}={max(low, 0.0):g}) or on the command line as '
        f'--config.rule_options.{name}={max(low, 0.0):g}.')


def check_choice(rule: Rule, name: str, choices: tuple[str | bool, ...]) -> None:
  """Raises RuleOptionError unless the rule's option `name` is one of `choices`."""
  value = getattr(rule, name)
  if value not in choices:
    raise RuleOptionError(
        f'{type(rule).__name__} got {name}={value!r}; {name} must be one of: '
        f'{", ".join(map(str, choices))}. For instance bioprop.make(..., {name}={choices[0]!r}).')
