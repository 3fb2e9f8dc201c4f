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
_FUSED = inspect.unwrap(nn.OptimizedLSTMCell.__call__)


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
    module, name = context.module, _weight_of(context)
    if context.orig_method.func is _FUSED:
      return nn.LSTMCell.__call__(module, *args, **kwargs)  # The same, made of Dense layers.
    if _inside.get() or name is None:
      return next_fun(*args, **kwargs)
    (x, *rest), path = args, '/'.join(module.path)
    call = lambda x: next_fun(x, *rest, **kwargs)
    tokens = not jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    if rule == 'hebb':
      # Zeros are sent down, not nothing: a cotangent must arrive for `receiving` to replace it.
      y = call(x if tokens else receiving(x, jnp.zeros_like(x)))
      return y if path in readouts else receiving(y, _hebbian(y, error, (phi or {}).get(path)))
    params = nn.meta.unbox(module.variables['params'])
    if tokens:
      b = params.get('feedback_embedding')  # Of kp, if the readout is tied: it learns here too.
      return call(x) if b is None else call(x) + (b[x] - stop(b[x]))
    if rule == 'dfa':
      return call(receiving(x, _broadcast(error, _at(feedback, path)['error'], x)))
    b = _backward_weight(rule, name, params, feedback, path)

    def sent(x):
      with _left_alone():
        alone = module.clone(parent=None, **({'use_bias': False} if name == 'kernel' else {}))
        return alone.apply({'params': {name: b}}, x, *rest, method=context.method_name, **kwargs)

    return call(stop(x)) + (sent(x) - stop(sent(x)))

  def apply(variables, *args, **kwargs):
    with nn.intercept_methods(intercept):
      return model.apply(variables, *args, **kwargs)

  return apply


def _weight_of(context):
  """The name of the weight by which a method multiplies; None if it does not."""
  if isinstance(context.module, LAYERS) and context.method_name == '__call__':
    return 'kernel'
  if isinstance(context.module, nn.Embed) and context.method_name in ('__call__', 'attend'):
    return 'embedding'
  return None


def _broadcast(error, b, x):
  """B e for each sample (or position), like x; one for all positions where B has x's last axis."""
  signal = error.reshape(-1, b.shape[0]) @ b
  return jnp.repeat(signal, x.size // signal.size, 0).reshape(x.shape)


def _backward_weight(rule, name, params, feedback, path):
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
