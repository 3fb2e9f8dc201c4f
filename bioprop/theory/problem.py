"""What a march of mean-field theory is compiled for, what it is run on, and what it finds."""
from collections.abc import Callable
from typing import NamedTuple

from bioprop.theory import responses
from bioprop.theory.activations import Activation
from bioprop.typing import Array


class Program(NamedTuple):
  """What a march is compiled for.

  Attributes:
    rule: one of `march.RULES`.
    phi: the nonlinearity.
    depth: hidden layers, L.
    steps: T, times.
    samples: S, copies of a neuron; at least T P where copies carry tangents.
    loss: of outputs [C] and targets [C] of one sample, or a name.
    without: response functions that are taken for 0, of 'abcd'.
    outputs: C; None: one, and `loss` is of one output [] and one target [].
    times: n of the T, at which kernels are kept; None: all.
    past: 'kept' or 'summed'; see bioprop/theory/kept.py and summed.py.
  """
  rule: str
  phi: Activation
  depth: int
  steps: int
  samples: int
  loss: str | Callable[[Array, Array], Array]
  without: str = ''
  outputs: int | None = None
  times: tuple[int, ...] | None = None
  past: str = 'kept'

  @property
  def kept(self) -> tuple[int, ...]:
    """The times at which kernels are kept."""
    return tuple(range(self.steps)) if self.times is None else self.times


def tangents(program: Program) -> list[str]:
  """Of each layer, the fields along which its copies carry derivatives."""
  rule, depth = program.rule, program.depth
  if program.past == 'summed' or not responses.carried(rule, program.phi):
    return [''] * depth
  return [responses.of_layer(rule, depth, number) for number in range(depth)]


class Lazy(NamedTuple):
  """What is known of the start, of which copies have estimates; each [P, P].

  Attributes:
    entk: K; under hebb, whose signals change with Delta, the readout's part alone.
    top: what the readout and the layer below add to it.
  """
  entk: Array
  top: Array


class Setting(NamedTuple):
  """What a march is run on.

  Attributes:
    root: [P, P], of which K^x = root root^T.
    targets: y [P, C].
    trained: [P], 1 where a sample is trained on, 0 elsewhere.
    counts: [T, P], how often each sample is in the batch of each step.
    gamma0: richness [].
    rate: eta [].
    rho: correlation of the feedback with the initial weights [].
    momentum: of heavy balls [].
    weights: s_l^2 [L + 1].
    biases: beta_l [L + 1].
    bias_rates: r_l [L + 1].
    lazy: K at the start; None: not known.
  """
  root: Array
  targets: Array
  trained: Array
  counts: Array
  gamma0: Array
  rate: Array
  rho: Array
  momentum: Array
  weights: Array
  biases: Array
  bias_rates: Array
  lazy: Lazy | None = None


class March(NamedTuple):
  """What a march found. Kernels are [L, n, P, n, P], those of signals the mean over outputs.

  Attributes:
    f: outputs [T, P, C], less those at the start; [T, P] where the program has no outputs.
    delta: - dl / df, as f.
    entk: K [T, P, P], the mean over outputs.
    between: K of all pairs of outputs, [n, P, P, C, C].
    phi: Phi^1, ..., Phi^L.
    g: G^l.
    g_pseudo: G~^l, rows the true signals.
    pseudo: G~~^l.
    responses: by letter, of the layers 1, ..., L - 1; only those that the rule has. a and c are
      [L - 1, n, P, n, P], b and d [L - 1, n, P, C, n, P]. Where the program has no outputs all are
      as a, and a and c responses to r and v themselves. None of a past that is summed.
    missed: the largest share of what there may be answers to that was left out [].
  """
  f: Array
  delta: Array
  entk: Array
  between: Array
  phi: Array
  g: Array
  g_pseudo: Array
  pseudo: Array
  responses: dict[str, Array]
  missed: Array
