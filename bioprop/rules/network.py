"""What a rule of the whole network is.

A `Rule` looks at one layer at a time. Some rules cannot: they run the network a second time, or
change its forward pass. Such a rule is handed the network as one pure function, and answers with a
function of the same parameters whose gradients, taken by JAX, are the pseudogradients.
"""
import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from bioprop.typing import Array, Key, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
  """A model on one batch, and what can be done with it.

  Attributes:
    function: maps (params, inputs) to (out, state): what the model returns, and what it carries to
      its next call (running means), which takes no gradient.
    inputs: the model's inputs, a tree of arrays.
  """
  function: Callable[[Params, PyTree], tuple[PyTree, PyTree]]
  inputs: PyTree

  @abc.abstractmethod
  def twin(self, params: Params, initial: Params, same_time: bool) -> tuple[PyTree, PyTree]:
    """Runs the network beside its twin, which has the initial parameters.

    Args:
      params: the parameters as they are now.
      initial: the twin's.
      same_time: see `AlignAda.same_time_error`.

    Returns:
      (out, state) of the network, whose errors go down the twin and meet current activities.

    Raises:
      UnsupportedLayerError: if parameters meet activities where the twin cannot follow.
    """

  @abc.abstractmethod
  def relus(self, params: Params) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the ReLUs' arguments, in the order in which the network runs.

    Raises:
      UnsupportedLayerError: if a ReLU stands in a loop, in a branch, or in a function with a
        derivative of its own.
    """

  @abc.abstractmethod
  def gated(self, params: Params, replacement: Callable[[int, Array], Array]
            ) -> tuple[tuple[PyTree, PyTree], int]:
    """Runs the network with `replacement(number, h)` in place of every ReLU.

    Returns:
      (out, state), and how many ReLUs there are.

    Raises:
      UnsupportedLayerError: as `relus`.
    """


@dataclasses.dataclass(frozen=True)
class NetworkRule(abc.ABC):
  """A learning rule of the whole network: immutable, compared by value; fields are its options.

  Class attributes:
    papers, exact, learns, linear: as in `Rule`; no rule of the whole network is backprop or
      has learned feedback.
    own_forward: the forward pass is the rule's own, and the gradients are its derivatives.
    needs_sample: the feedback depends on the shapes inside the network.
    keeps_weights: the feedback holds the initial parameters.
    multiplies: the pseudogradient of an op's weights is always its input times the error that
      backprop sends to its output: ('now', 'initial') if the input is that of the network as it is,
      and the error that of the initial network. None: it is not so; measurements are slower.
    keeps_feedback: as in `Rule`.
  """
  papers: ClassVar[tuple[str, ...]] = ()
  exact: ClassVar[bool] = False
  learns: ClassVar[bool] = False
  linear: ClassVar[bool] = True
  own_forward: ClassVar[bool] = False
  needs_sample: ClassVar[bool] = False
  keeps_weights: ClassVar[bool] = False
  multiplies: ClassVar[tuple[str, str] | None] = None
  keeps_feedback: ClassVar[bool] = True

  @abc.abstractmethod
  def init_feedback(self, key: Key, network: Network, params: Params) -> dict[str, PyTree]:
    """Makes the rule's feedback, by name.

    Args:
      key: for what is drawn.
      network: the model on a sample; abstract where the model is initialised abstractly.
      params: its initial parameters.
    """

  @abc.abstractmethod
  def run(self, network: Network, params: Params,
          feedback: dict[str, PyTree]) -> tuple[PyTree, PyTree]:
    """Runs the network on its inputs.

    Args:
      network: the model.
      params: its parameters as they are now.
      feedback: what `init_feedback` made.

    Returns:
      (out, state), as `network.function` gives them; the gradients of `out` in `params` are the
      rule's pseudogradients.
    """


def relay(value: PyTree, *sources: PyTree) -> PyTree:
  """Returns `value`; its cotangent goes to every one of `sources`, and not to `value`.

  Args:
    value: arrays.
    *sources: trees shaped like `value`.
  """
  return jax.tree.map(_relay, value, *sources)


def _relay(value, *sources):
  if not _inexact(value):
    return value

  @jax.custom_vjp
  def forward(value, sources):
    del sources
    return value

  forward.defvjp(lambda value, sources: (value, None),
                 lambda _, g: (None, tuple(g for _ in sources)))
  return forward(value, sources)


def stop(tree: PyTree) -> PyTree:
  """The tree, through which no gradient passes; keys and integers as they are."""
  return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if _inexact(a) else a, tree)


def _inexact(a) -> bool:
  return jnp.issubdtype(a.dtype if hasattr(a, 'dtype') else jnp.result_type(a), jnp.inexact)
