"""What each rule is to compute, written with stop_gradient on the plain Flax model.

None of bioprop is used. An op with kernel W sends its cotangent g through B in

  y = op(W, stop(x)) + op(B, x) - stop(op(B, x)) ,

whose value is op(W, x), whose derivative in W is x^T g, and in x is B^T g. Broadcast errors enter
at an op's input, or at its output for hebb, by a function whose backward pass is a constant.
"""
import contextlib
import contextvars
import inspect
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

stop = jax.lax.stop_gradient
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar('inside', default=False)

LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose, nn.Einsum)


@jax.custom_vjp
def receiving(x, signal):
  """x; the cotangent of x is `signal`, whatever arrives."""
  del signal
  return x


receiving.defvjp(lambda x, signal: (x, signal), lambda signal, _: (signal, None))


def applying(model, rule, feedback=None, error=None, readouts=(), phi=None):
  """model.apply whose gradient is the rule's.

  Args:
    model: a plain linen module.
    rule: its name.
    feedback: the collection 'feedback' of the plugged model.
    error: the error at the network's output, [n, ..., classes], for dfa and hebb.
    readouts: paths of the layers that learn by the cotangent that reaches them, for hebb.
    phi: nonlinearities by path, for hebb; the identity for all others.
  """

  def intercept(next_fun, args, kwargs, context):
    module, method = context.module, context.method_name
    if context.orig_method.func is inspect.unwrap(nn.OptimizedLSTMCell.__call__):
      return nn.LSTMCell.__call__(module, *args, **kwargs)  # The same, made of Dense layers.
    if rule == 'kp' and isinstance(module, nn.Embed) and method == '__call__':
      b = nn.meta.unbox(module.variables['params']).get('feedback_embedding')
      if b is not None:  # Tied to the readout: B gets all of W's update, that of the lookup too.
        return next_fun(*args, **kwargs) + (b[args[0]] - stop(b[args[0]]))
    layer = isinstance(module, LAYERS) and method == '__call__'
    attend = isinstance(module, nn.Embed) and method == 'attend'
    if _inside.get() or not (layer or attend):
      return next_fun(*args, **kwargs)
    x, path = args[0], '/'.join(module.path)
    if rule == 'dfa':
      own = _at(feedback, path)['error']
      signal = error.reshape(-1, own.shape[0]) @ own
      if signal.size < x.size:  # spatial='shared': all positions of a sample get the same.
        signal = jnp.repeat(signal, x.size // signal.size, 0)
      return next_fun(receiving(x, signal.reshape(x.shape)), *args[1:], **kwargs)
    if rule == 'hebb':
      # Zeros are sent down, not nothing: a cotangent must arrive for `receiving` to replace it.
      y = next_fun(receiving(x, jnp.zeros_like(x)), *args[1:], **kwargs)
      return y if path in readouts else receiving(y, _hebbian(y, error, (phi or {}).get(path)))
    name = 'kernel' if layer else 'embedding'
    b = _backward_weight(rule, name, module.variables['params'], feedback, path)

    def sent(x):
      with _left_alone():
        alone = module.clone(parent=None, **({'use_bias': False} if layer else {}))
        return alone.apply({'params': {name: b}}, x, *args[1:], method=method, **kwargs)

    return next_fun(stop(x), *args[1:], **kwargs) + (sent(x) - stop(sent(x)))

  def apply(variables, *args, **kwargs):
    with nn.intercept_methods(intercept):
      return model.apply(variables, *args, **kwargs)

  return apply


def _backward_weight(rule, name, params, feedback, path):
  params = nn.meta.unbox(params)
  if rule == 'kp':
    return params[f'feedback_{name}']  # Not stopped: it gets W's own update, as op(B, x) is there.
  w = stop(params[name])
  if rule == 'usf':
    return jnp.sign(w) * jnp.sqrt(jnp.mean(w**2))
  b = nn.meta.unbox(_at(feedback, path))[name]
  return {'fa': b, 'frsf': jnp.sign(w) * b}[rule]


def _hebbian(y, error, phi):
  """-|Delta|^2 phi(h) / n, where e = -Delta / n; by position where y has the error's positions."""
  n = math.prod(error.shape[:-1])
  positions = error.ndim - 1 if y.shape[:error.ndim - 1] == error.shape[:-1] else 1
  squares = jnp.sum((n * error)**2, tuple(range(positions, error.ndim)))
  squares = squares.reshape(squares.shape + (1,) * (y.ndim - squares.ndim))
  return stop(-squares * (phi(y) if phi else y) / n)


def _at(tree, path):
  for part in path.split('/'):
    tree = tree[part]
  return tree


@contextlib.contextmanager
def _left_alone():
  token = _inside.set(True)
  try:
    yield
  finally:
    _inside.reset(token)
