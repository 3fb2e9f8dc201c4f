r"""Normalised feedback: the ratio of the norms of feedback and weights stays what it was.

Weights that align with fixed feedback grow, while the feedback does not, and the errors that come
back get out of proportion. Moskovitz, Litwin-Kumar & Abbott 2018 (arXiv 1812.06488) normalise
weights; BioTorch (Sanfiz & Akrout 2021, arXiv 2108.13446) has after them an option, for both fa and
dfa, by which each layer's W is scaled to |W(0)| before each forward pass, so that |W| / |B| is what
it was. Here the forward pass and the parameters are the user's, so the same ratio is held from its
other side: B follows the norm of W,

  fa    dx = B^T g |W| scale / |B|        dfa   dx = B e |W| / sqrt(outputs of W) ,

both norms Frobenius norms of one layer, and W that of the layer to whose input the signal is sent.
sqrt(outputs of W) is what |W| is in expectation under variances of 1 / fan-in, so that both rules
start as without it. It takes one number of each layer from the weights, and costs a pass over them.

It is off by default, since early in training it gains nothing: validation accuracy in % on MNIST
with LeNet-5, after 2 epochs on 8000 images (learning rate 0.05, gradients clipped to a norm of 1):

  normalise    fa, scale 1    fa, scale 0.5    dfa, scale 0.5
  none         80.06          85.30            84.36
  weights      77.18          84.94            83.42

  python train.py --config=configs/mnist_lenet.py --config.epochs=2 --config.examples=8000
      --config.rule=fa --config.rule_options.normalise=weights --data_dir=...

(Equations as in BioTorch's code; the text of the first paper was not at hand.)
"""
import math

import jax.numpy as jnp

from bioprop.typing import Array

CHOICES = ('none', 'weights')


def gain(w: Array) -> Array:
  """The norm of weights, over what variances of 1 / fan-in give."""
  return jnp.linalg.norm(w.reshape(-1)) / jnp.asarray(math.sqrt(w.shape[-1]), w.dtype)


def following(b: Array, w: Array, scale: float) -> Array:
  """Feedback with `scale` times the norm of the weights."""
  tiny = jnp.asarray(jnp.finfo(b.dtype).tiny, b.dtype)  # At scale 0 there is no norm to divide by.
  return b * (jnp.asarray(scale, b.dtype) * gain(w) / jnp.maximum(gain(b), tiny))
