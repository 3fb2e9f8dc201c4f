"""Activations by name, or made of a user's function, which is tried before it is believed."""
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

# By name; the exact ones also as the functions that have these names.
_EXACT = {
    'linear': (Linear(), (jax.nn.identity,)),
    'relu': (ReLU(), (jax.nn.relu,)),
    'leaky_relu': (ReLU(slope=0.01), (jax.nn.leaky_relu,)),
    'erf': (Erf(), (jax.lax.erf, jax.scipy.special.erf)),
    'sin': (Sin(), (jnp.sin, jax.lax.sin)),
    'cos': (Cos(), (jnp.cos, jax.lax.cos)),
}
_SMOOTH = {
    'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid, 'softplus': jax.nn.softplus,
    'silu': jax.nn.silu, 'gelu': jax.nn.gelu,
}


def as_activation(phi: str | Function | Activation) -> Activation:
  """Makes an activation of a name or a function.

  Args:
    phi: an activation, which is returned as it is; a name, such as 'relu' or 'tanh', with the
      constants of `flax.linen`; or a smooth JAX function that acts on each entry of an array. Those
      functions whose duals have closed forms (`jax.nn.relu`) are recognised.

  Returns:
    The activation.

  Raises:
    TheoryError: if the name is unknown; or the function mixes entries, changes shape or dtype,
      cannot be differentiated, or has a kink, of which quadrature would be wrong.
  """
  if isinstance(phi, Activation):
    return phi
  if isinstance(phi, str) and phi in _EXACT:
    return _EXACT[phi][0]
  if isinstance(phi, str) and phi in _SMOOTH:
    return Quadrature(_SMOOTH[phi])
  if isinstance(phi, str) or not callable(phi):
    raise TheoryError(
        f'phi={phi!r} is no nonlinearity that theory knows: it takes one of '
        f'{", ".join((*_EXACT, *_SMOOTH))}, or a smooth JAX function of each entry. Type '
        f'phi=\'relu\', phi=ReLU(slope=0.2) or phi=lambda h: jnp.tanh(2 * h).')
  for activation, functions in _EXACT.values():
    if any(phi is function for function in functions):
      return activation
  _check_elementwise(phi)
  activation = Quadrature(phi)
  check_smooth(activation)
  return activation


def _check_elementwise(phi: Function) -> None:
  """Raises TheoryError if phi is not a function of each entry, with two derivatives."""
  name = getattr(phi, '__name__', repr(phi))
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
    alone = np.stack([np.asarray(phi(entry)) for entry in h.reshape(6, 1)]).reshape(2, 3)
    if not np.allclose(phi(h), alone, rtol=1e-4, atol=1e-5):
      raise TheoryError(f'phi={name} gives an array other values than each of its entries alone '
                        f'(softmax and norms do): it mixes units. {advice}')


def check_smooth(activation: Quadrature) -> None:
  """Raises TheoryError if phi or one of its first two derivatives jumps somewhere in (-8, 8)."""
  # Closer points of a smooth function differ by less; a jump stays as it is.
  grid = np.linspace(-8, 8.0037, 2048, dtype=np.float32)
  for order, function in enumerate((activation, activation.derivative, activation.second)):
    with jax.ensure_compile_time_eval():
      differences = np.abs(np.diff(function(jnp.asarray(grid))))
      at = int(np.argmax(differences))
      closer = np.linspace(grid[at], grid[at + 1], 64, dtype=np.float32)
      jump = np.max(np.abs(np.diff(function(jnp.asarray(closer)))))
    if jump > max(differences[at] / 2, 1e-3):
      name = getattr(activation.function, '__name__', repr(activation.function))
      raise TheoryError(
          f'phi={name} has a derivative of order {order} that jumps by {jump:.3g} near '
          f'h={grid[at]:.3g}, and quadrature is accurate for smooth functions: errors would be '
          f'between 1e-5 and 1e-1. A ReLU, leaky or not, is exact as phi=ReLU(slope=0.0, '
          f'scale=1.0); to bear the errors, type phi=Quadrature(function).')
