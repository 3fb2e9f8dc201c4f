"""Activations by name, or made of a user's function, which is tried before it is believed."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory.activations import (
    Activation,
    Cos,
    Erf,
    Function,
    Linear,
    Quadrature,
    ReLU,
    Sin,
)
from bioprop.theory.parts import NODES
from bioprop.theory.piecewise import Piecewise
from bioprop.theory.recognise import activation_of, name_of, shape_of

_NAMED = {
    'linear': Linear(), 'relu': ReLU(), 'leaky_relu': ReLU(slope=0.01), 'erf': Erf(), 'sin': Sin(),
    'cos': Cos(), 'tanh': Quadrature(jnp.tanh), 'sigmoid': Quadrature(jax.nn.sigmoid),
    'softplus': Quadrature(jax.nn.softplus), 'silu': Quadrature(jax.nn.silu),
    'gelu': Quadrature(jax.nn.gelu),
}


def as_activation(phi: str | Function | Activation) -> Activation:
  """Makes an activation of a name or a function.

  Args:
    phi: an activation, which is returned as it is; a name, such as 'relu' or 'tanh', with the
      constants of `flax.linen`; or a JAX function that acts on each entry of an array, smooth but
      at 16 places at most. Those functions whose duals have closed forms (ReLUs of any slopes, erf,
      sin, cos, lines) are recognised by their values, others become a `Quadrature`, or a
      `Piecewise` if they have kinks or jumps.

  Returns:
    The activation.

  Raises:
    TheoryError: if the name is unknown; or the function mixes entries, changes shape or dtype,
      cannot be differentiated, is not finite or has no variance, has more kinks, or bends too fast.
  """
  if isinstance(phi, Activation):
    return phi
  if isinstance(phi, str) and phi in _NAMED:
    return _NAMED[phi]
  if isinstance(phi, str) or not callable(phi):
    raise TheoryError(
        f'phi={phi!r} is no nonlinearity that theory knows: it takes one of '
        f'{", ".join(_NAMED)}, or a JAX function of each entry. Type phi=\'relu\', '
        f'phi=ReLU(slope=0.2) or phi=lambda h: jnp.tanh(2 * h).')
  _check_elementwise(phi)
  found = activation_of(phi)
  # Whoever sums chooses the terms for the variances that there are.
  return dataclasses.replace(found, nodes=NODES) if isinstance(found, Quadrature) else found


def _check_elementwise(phi: Function) -> None:
  """Raises TheoryError if phi is not a function of each entry, with two derivatives."""
  name = name_of(phi)
  advice = ('Theory takes one function of each number: pass phi=\'relu\', or a function of an '
            'array that treats its entries alike, such as phi=lambda h: jnp.tanh(2 * h).')
  trial = Quadrature(phi)
  for shape in ((3,), (2, 3)):
    h = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
      out = jax.eval_shape(phi, h)
      jax.eval_shape(trial.second, h)
    except Exception as error:  # Whatever the caller's function raises.
      raise TheoryError(
          f'phi={name} cannot be called, and differentiated twice in forward mode, on a float32 '
          f'array of shape {shape}: {type(error).__name__} (see above). {advice}') from error
    if (getattr(out, 'shape', None), getattr(out, 'dtype', None)) != (h.shape, h.dtype):
      raise TheoryError(f'phi={name} maps a float32 array of shape {shape} to {out}, and is to '
                        f'keep shape and dtype. {advice}')
  with jax.ensure_compile_time_eval():
    h = jnp.asarray([[-1.7, 0.3, 1.1], [0.9, -0.4, 2.2]], jnp.float32)
    try:
      alone = np.stack([np.asarray(phi(entry)) for entry in h.reshape(6, 1)]).reshape(2, 3)
    except jax.errors.TracerArrayConversionError as error:
      raise TheoryError(
          f'phi={name} depends on a value that is being traced, and its values are needed now, to '
          f'find its kinks. Make it of Python numbers, outside of jax.jit: phi=lambda h: '
          f'jnp.tanh(2.0 * h).') from error
    if not np.allclose(phi(h), alone, rtol=1e-4, atol=1e-5):
      raise TheoryError(f'phi={name} gives an array other values than each of its entries alone '
                        f'(softmax and norms do): it mixes units. {advice}')


def check_smooth(activation: Quadrature) -> None:
  """Raises TheoryError if phi or a derivative of it jumps somewhere in (-64, 64)."""
  for place, sizes in shape_of(activation.function).jumps:
    order = next(order for order, size in enumerate(sizes) if size)
    raise TheoryError(
        f'phi={name_of(activation.function)} has a derivative of order {order} that jumps by '
        f'{sizes[order]:.3g} at h={place:.3g}, and quadrature is accurate for smooth functions: '
        f'errors would be between 1e-5 and 1e-1. Pass the function itself, '
        f'phi=as_activation(function), of which kinks are found.')


def check_steps(activation: Piecewise) -> None:
  """Raises TheoryError if phi itself jumps."""
  for place, size in activation.steps:
    raise TheoryError(
        f'phi={name_of(activation.function)} jumps by {size:.3g} at h={place:.3g}, where it has no '
        f'derivative, and responses are averages of derivatives. Take a function that is '
        f'continuous, for instance phi=lambda h: jnp.clip(5 * h, -1, 1).')
