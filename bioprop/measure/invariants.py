r"""What gradient flow conserves under feedback alignment, and under backprop.

Consecutive layers of a chain, h_l = W_l a_{l-1} + b_l and a_l = phi(h_l), have positively
homogeneous things of degree k between them, phi'(h) h = k phi(h): ReLU, leaky ReLU, linear units,
pooling, dropout (k = 1), ReLU^2 (k = 2). Feedback alignment sends errors through fixed B_l,

  delta_l = phi'(h_l) * (B_{l+1}^T delta_{l+1}) ,   G_l = SUM delta_l a_{l-1}^T ,

so that <W_l, G_l> + <b_l, g_l> = SUM delta_l . h_l = k SUM (B_{l+1}^T delta_{l+1}) . a_l
= k <B_{l+1}, G_{l+1}>, g_l the bias's pseudogradient, whatever the loss. Under gradient flow

  Q_l = (|W_l|^2 + |b_l|^2) / (2 k) - <W_{l+1}, B_{l+1}>

is therefore constant (Robertson & Koyejo 2023, arXiv 2306.01870, theorem 1, for ReLU networks with
one output), and so is its share of each neuron, or of each channel of a convolution. Feedback that
starts with Q_l < 0 stays aligned: <W_{l+1}, B_{l+1}> >= -Q_l. Backprop has B_{l+1} = W_{l+1}, and
conserves (|W_l|^2 + |b_l|^2) / (2 k) - |W_{l+1}|^2 / 2 (Du, Hu & Lee 2018, arXiv 1806.00900).

Plain SGD conserves Q_l to first order in its learning rate, on any minibatches. Momentum, weight
decay, normalisation, residual paths and units like tanh do not conserve it. Fixed factors of the
parametrization (1 / sqrt(n) in 'ntk') change nothing where the feedback passes through them too.
"""
from collections.abc import Sequence

import jax.numpy as jnp

from bioprop.errors import MeasureError
from bioprop.typing import Array

Biases = Sequence[Array | None] | None


def fa_invariant(
    weights: Sequence[Array],
    feedback: Sequence[Array | None],
    biases: Biases = None,
    degree: float = 1,
    per_neuron: bool = False,
    rates: Sequence[float] | None = None,
) -> list[Array]:
  """Computes what feedback alignment conserves.

  Direct feedback alignment conserves it in the last hidden layer alone: of B [error, features],
  which `variables['feedback']` has as 'error' of the readout, it is
  `fa_invariant(weights[-2:], [None, B.T], biases[-2:])`. Under align_prop the feedback is the
  initial weights.

  Args:
    weights: W_1, ..., W_L from the first layer up, L >= 2, each [..., in, out] as Flax has them. A
      dense layer may see the flattened positions of the channels below, channels last.
    feedback: B_1, ..., B_L, each shaped like its W; B_1 is not used and may be None.
    biases: of each layer, [out] or None.
    degree: k, of all that lies between two layers together; the same between all.
    per_neuron: one number for each neuron or channel, and not their sum.
    rates: the layers' learning rates, where they differ: the terms of W_l are divided by the l-th.

  Returns:
    Q_l for l = 1, ..., L-1: scalars, or [out of layer l] if `per_neuron`.

  Raises:
    MeasureError: if these cannot be consecutive layers, or feedback, biases or rates not theirs.
  """
  _check(weights, biases, per_neuron, rates)
  shapes = [jnp.shape(w) for w in weights]
  there = [None if b is None else jnp.shape(b) for b in feedback]
  if shapes[1:] != there[1:]:
    raise MeasureError(
        f'the feedback has shapes {there}, and the weights {shapes}: all but the first layer need '
        f'feedback shaped like their weights, as <W, B> is what they conserve. Give '
        f'[None, B_2, ..., B_L], for dfa\'s [error, features] the transpose: [None, B.T].')
  result = _own(weights, biases, degree, per_neuron, rates)
  rates = [1] * len(weights) if rates is None else rates
  for at, (own, w, b, rate) in enumerate(zip(result, weights[1:], feedback[1:], rates[1:])):
    inputs = jnp.multiply(w, b).sum(-1)  # Channels last, also where positions were flattened.
    above = inputs.reshape(-1, *own.shape).sum(0) if per_neuron else inputs.sum()
    result[at] = own - above / rate
  return result


def balance(
    weights: Sequence[Array],
    biases: Biases = None,
    degree: float = 1,
    per_neuron: bool = False,
    rates: Sequence[float] | None = None,
) -> list[Array]:
  """Computes what backprop conserves, (|W_l|^2 + |b_l|^2) / (2 k) - |W_{l+1}|^2 / 2.

  A step of plain SGD adds exactly the balance of its updates, `balance(updates, bias_updates)`
  with the same options.

  Args:
    weights: W_1, ..., W_L; these and the others as in `fa_invariant`.
    biases: of each layer, [out] or None.
    degree: k.
    per_neuron: one number for each neuron or channel.
    rates: the layers' learning rates, where they differ.

  Returns:
    The difference for l = 1, ..., L-1: scalars, or [out of layer l] if `per_neuron`.

  Raises:
    MeasureError: if these cannot be consecutive layers, or biases or rates not theirs.
  """
  return fa_invariant(weights, [w / 2 for w in weights], biases, degree, per_neuron, rates)


def discrete_drift(
    updates: Sequence[Array],
    bias_updates: Biases = None,
    degree: float = 1,
    per_neuron: bool = False,
    rates: Sequence[float] | None = None,
) -> list[Array]:
  """Computes what one step of plain SGD adds to `fa_invariant`: (|u_l|^2 + |v_l|^2) / (2 k).

  The terms of first order cancel, and <W, B> has no others: after any steps, of any size and on any
  minibatches, Q_l has grown by exactly the sum of their drifts. It never falls.

  Args:
    updates: u_1, ..., u_L, what the step added to the weights (-eta_l G_l); the last is not used.
    bias_updates: v_1, ..., v_L, what it added to the biases, or None.
    degree: k; this and the others as in `fa_invariant`.
    per_neuron: one number for each neuron or channel.
    rates: the layers' learning rates, where they differ.

  Returns:
    The drift of Q_l for l = 1, ..., L-1: scalars, or [out of layer l] if `per_neuron`.

  Raises:
    MeasureError: if these cannot be consecutive layers, or biases or rates not theirs.
  """
  _check(updates, bias_updates, per_neuron, rates)
  return _own(updates, bias_updates, degree, per_neuron, rates)


def _own(weights, biases, degree, per_neuron, rates) -> list[Array]:
  """(|W_l|^2 + |b_l|^2) / (2 k eta_l) of every layer but the last."""
  biases = [None] * len(weights) if biases is None else biases
  rates = [1] * len(weights) if rates is None else rates
  result = []
  for w, b, rate in zip(weights[:-1], biases, rates):
    squares = jnp.square(w).reshape(-1, w.shape[-1]).sum(0)
    squares = squares if b is None else squares + jnp.square(b)
    result.append((squares if per_neuron else squares.sum()) / (2 * degree * rate))
  return result


def _check(weights, biases, per_neuron, rates):
  """Raises MeasureError unless these may be consecutive layers."""
  shapes = [jnp.shape(w) for w in weights]
  if len(shapes) < 2 or min(map(len, shapes)) < 2:
    raise MeasureError(
        f'weights of shapes {shapes} were given, and what is conserved joins a layer to the next: '
        f'give two or more arrays [..., in, out], from the first layer up, for instance '
        f'[params[\'Dense_0\'][\'kernel\'], params[\'Dense_1\'][\'kernel\']].')
  for shape, after in zip(shapes, shapes[1:]):
    channels, inputs = shape[-1], after[-2]
    # The sum over all channels is conserved through grouped convolutions and images made of
    # features, too, whose inputs are fewer than the channels.
    if inputs % channels and (per_neuron or channels % inputs):
      raise MeasureError(
          f'a layer of shape {shape} has {channels} outputs, and the next, of shape {after}, has '
          f'{inputs} inputs, which is no multiple{"" if per_neuron else " or divisor"} of them: '
          f'nothing homogeneous of each {"neuron" if per_neuron else "layer"} can lie between. '
          f'Give weights [..., in, out] from the first layer up (of PyTorch\'s, w.T)'
          f'{", or per_neuron=False" if per_neuron else ""}.')
  for name, given in (('biases', biases), ('rates', rates)):
    if given is not None and len(given) != len(shapes):
      raise MeasureError(f'{len(given)} {name} were given for {len(shapes)} layers: give one for '
                         f'each{", None where there is none" if name == "biases" else ""}.')
  for shape, b in zip(shapes, biases or ()):
    if b is not None and jnp.shape(b) != shape[-1:]:
      raise MeasureError(f'a bias has shape {jnp.shape(b)}, and its layer\'s weight {shape}: it is '
                         f'to be {shape[-1:]}, one number for each neuron or channel.')
