r"""infinite: the kernels of a user's own network, all of whose hidden widths are infinite.

    kernels = bioprop.theory.infinite(model, x, rule='fa')
    kernels.ntk, kernels.entk, kernels.phi['Dense_1/kernel'], kernels.g['Dense_1/kernel']

The network is read from its jaxpr, in the parametrisation that it has: what stands at a width is
what networks as wide as the model come close to, and with wider ones closer, as 1 / sqrt(width)
(Jacot, Gabriel & Hongler 2018, arXiv 1806.07572; Yang 2020, arXiv 2006.14548; under other rules
Bordelon & Pehlevan 2023, arXiv 2210.02157, table 2). All hidden features are taken for infinitely
many; numbers of samples, positions, classes and input features are what they are.
"""
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bioprop.errors import TheoryError, refusing_samples, require_sample
from bioprop.fronts import nnx as nnx_plug
from bioprop.fronts.choice import Choice, Where, choose, locate
from bioprop.fronts.function import Call, Returned, split
from bioprop.limit import blocks
from bioprop.limit.calls import call_of
from bioprop.limit.credits import credit_of
from bioprop.limit.inputs import inputs_of
from bioprop.limit.parameters import Uses
from bioprop.limit.reader import Reader, output_field
from bioprop.limit.values import Known
from bioprop.limit.variances import estimate
from bioprop.network.layered import trace
from bioprop.rules import AnyRule, NetworkRule
from bioprop.rules.gated import GatedLinear, seen_by_gates
from bioprop.theory.fields.leaves import Applied, Field, Given, Weighted
from bioprop.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class InfiniteKernels:
  """Kernels of n samples with n', per output; of outputs with positions a mean over these.

  What `bioprop.measure` finds of wide networks of this parametrisation: `entk` is
  `measure.entk(..., trace=True)` over the number of outputs; phi, g and g_pseudo are those of
  `measure.features`, g and g_pseudo over the number of outputs.

  Attributes:
    nngp: E f f' of the outputs at the start, [n, n'].
    ntk: backprop's neural tangent kernel, [n, n'].
    entk: the rule's, [n, n']: rows are the samples whose outputs move.
    phi: of what a weight multiplies, by the weight's path, [n, n'].
    g: of the gradients at a weight's output, summed over positions, [n, n'].
    g_pseudo: of the gradients with the rule's.
    shares: what each parameter adds to `entk`, [n, n'].
    variances: of one entry of each parameter as it is used, by path.
    error: relative error of kernels that comes of estimated variances, and of means over points.
  """
  nngp: Array
  ntk: Array
  entk: Array
  phi: dict[str, Array]
  g: dict[str, Array]
  g_pseudo: dict[str, Array]
  shares: dict[str, Array]
  variances: dict[str, float]
  error: float


def infinite(
    model: nn.Module | nnx.Module | Callable[..., Any],
    x: Any,
    x2: Any = None,
    rule: 'AnyRule | str | Mapping[str, AnyRule | str] | None' = None,
    *,
    init: Any = None,
    variances: Mapping[str, float] | None = None,
    accuracy: float = 2e-3,
    key: Key | None = None,
    output: Where = None,
    max_gib: float = 4.0,
    block: int | None = None,
    **kwargs: Any,
) -> InfiniteKernels:
  """The lazy limit's kernels of a network, read from the network itself.

  Matrix products and convolutions (strides, padding, groups, dilation), embeddings, biases, every
  elementwise function, sums, products of independent activities, joined and split features,
  flattening, pooling by means, fixed mixtures of positions, LayerNorm, RMSNorm, GroupNorm, and
  BatchNorm with initial statistics. Of functions of one sum, expectations are closed or accurate to
  1e-8; of functions of several, as in a residual block without a weight between two
  nonlinearities, they are means over points, whose error is part of `error`.

  Weights are taken for Gaussian. Those of Flax's own initialisers are cut off at two standard
  deviations, and a first layer that sees D numbers is then Gaussian to O(1 / D) only, at any width:
  kernels of tanh networks are off by 0.8 % at D = 12.

  It looks at values, and cannot be under `jax.jit`.

  Args:
    model: an unbound linen module, plain or plugged; an NNX module; or a function of (params,
      *inputs).
    x: samples [n, ...]; a tuple of arrays where the model takes several.
    x2: other samples [n', ...], whose errors move the outputs of x; None: x.
    rule: what `bioprop.plug` takes, of the rules that have a lazy limit; None: the model's own,
      and backprop of a plain one.
    init: of an NNX model, a function of a key to another such model; of a function, parameters or a
      function of a key to parameters. Linen models have their own.
    variances: of entries of parameters, by pattern of their paths, first match first, in place of
      estimates: {'*/kernel': 2 / 512}. What is not named is estimated from draws.
    accuracy: relative error of estimated variances.
    key: of draws; None: jax.random.key(0).
    output: which of the model's outputs, as in `bioprop.plug`.
    max_gib: memory that one block of samples may take, in GiB (2**30 bytes).
    block: samples in a block; None: as many as `max_gib` allows.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The kernels.

  Raises:
    TheoryError: if something in the network has no such limit, which the message names with its
      place and what could replace it; if a parameter is not centred; or one sample takes more
      memory than `max_gib`.
    ConvergenceError: if expectations do not reach their accuracy.
    SampleError: if the model cannot be called on the samples.
  """
  samples, others = _samples(x), None if x2 is None else _samples(x2)
  key = jax.random.key(0) if key is None else key
  require_sample('theory.infinite', samples)
  _check_constants(kwargs, blocks.count_of(samples))
  size = blocks.size_of(samples, others, block)
  call, draw = call_of(model, blocks.cut(samples, 0, size), kwargs, init, key)
  choice = choose(rule) if rule is not None else _own_choice(model)
  again = None if draw is None else jax.jit(draw)(jax.random.fold_in(key, 2))

  def read(size: int) -> _Read:
    part, _, _ = split(blocks.cut(samples, 0, size), kwargs)
    return _read(dataclasses.replace(call, inputs=part), again, len(samples), output, choice)

  first = read(size)
  found = estimate(first.uses, draw, variances or {}, jax.random.fold_in(key, 1), accuracy)
  values = {name: one.value for name, one in found.items()}
  # A jaxpr is of so many samples as a block has.
  plan_of = lambda at: (first if at == size else read(at)).plan(values)
  kernels, error = blocks.run(plan_of, samples, others, size, max_gib)
  named = lambda by_number: {op.weight.name: by_number[op.number] for op in first.ops
                             if op.number in by_number}
  drawn = math.sqrt(sum(one.error**2 for one in found.values()))
  return InfiniteKernels(
      kernels.nngp, kernels.ntk, kernels.entk, named(kernels.phi), named(kernels.g),
      named(kernels.g_pseudo), kernels.shares, values, math.hypot(drawn, error))


def _samples(x: Any) -> tuple[Array, ...]:
  arrays = tuple(map(jnp.asarray, x)) if isinstance(x, tuple) else (jnp.asarray(x),)
  for one in arrays:
    if isinstance(one, jax.core.Tracer):
      raise TheoryError('infinite reads the network and looks at values, and was called under '
                        'jax.jit, grad or vmap. Call it outside, and pass its kernels in.')
    if not one.size or not np.all(np.isfinite(one)):
      raise TheoryError(f'samples of shape {one.shape} are empty, or hold infinite numbers or NaN, '
                        f'and so would all their kernels. Pass finite ones.')
  return arrays


def _check_constants(kwargs: Mapping[str, Any], count: int) -> None:
  """Refuses keyword arguments that seem to be of the samples, which blocks are cut from."""
  for name, one in kwargs.items():
    if any(getattr(leaf, 'shape', ())[:1] == (count,) for leaf in jax.tree.leaves(one)):
      raise TheoryError(f'{name} has an entry for each of the {count} samples, and keyword '
                        f'arguments are the same for all. Pass it among the samples, '
                        f'infinite(model, (x, {name})), as the model takes it by position.')


def _own_choice(model: Any):
  plug = getattr(model, 'bioprop_plug', None) if isinstance(model, nn.Module) else (
      getattr(model, nnx_plug.PLUG, None))
  return choose('bp') if plug is None else plug.choice


def _gates(call: Call, rule: NetworkRule | None):
  """What the gates of a gated linear network see of its input; None of other networks."""
  if not isinstance(rule, GatedLinear):
    return None
  x = rule.gating_input(call.inputs)
  number = next(at for at, leaf in enumerate(jax.tree.leaves(call.inputs)) if leaf is x)
  return lambda relu, shape: Applied(lambda a: seen_by_gates(a, relu, shape), (Given(number),))


class _Read(NamedTuple):
  """A network as it was read: its output, ops, parameters, rules, and the dtype of kernels."""
  output: Field
  ops: list[Weighted]
  uses: Uses
  choice: Choice
  dtype: jnp.dtype

  def plan(self, variances: Mapping[str, float]) -> blocks.Plan:
    """What is to be computed, with variances by the names of uses."""
    credit = credit_of(self.choice, self.output, self.ops, self.uses)
    return blocks.Plan(self.output, credit, variances, self.dtype)


def _read(call: Call, again: Mapping[str, Array] | None, samples: int, output: Where,
          choice: Choice) -> _Read:
  """The network as a field of its samples, so many arrays of them, and constants after these."""
  returned, uses = Returned(), Uses(call.params, again)

  def function(params, held, inputs):
    out, state = call.function(params, held, inputs)
    return returned.keep(out), state

  with refusing_samples(call.name, call.inputs):
    traced = trace(function, call.params, call.held, call.inputs)
  position, leaf = returned.position(*locate(returned.restore(traced.out[0]), output))
  reader = Reader(uses, _gates(call, choice.network))
  leaves = jax.tree.leaves(call.inputs)
  arguments = [*map(uses.param, traced.paths), *map(Known, jax.tree.leaves(call.held)),
               *inputs_of(leaves[:samples]), *map(Known, leaves[samples:])]
  outs = reader.read(traced.closed, arguments)
  dtype = leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.dtype(jnp.float32)
  return _Read(output_field(outs[position], call.name), reader.ops, uses, choice, dtype)
