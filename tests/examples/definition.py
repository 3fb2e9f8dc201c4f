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
      return fused(module, *args)
    if rule == 'hebb' and _after_lookup(module):
      return next_fun(updated(args[0], '/'.join(module.path[:-1])), *args[1:], **kwargs)
    if _inside.get() or name is None:
      return next_fun(*args, **kwargs)
    (x, *rest), path = args, '/'.join(module.path)

    def sent(b, x):
      with _left_alone():
        alone = module.clone(parent=None, **({'use_bias': False} if name == 'kernel' else {}))
        return alone.apply({'params': {name: b}}, x, *rest, method=context.method_name, **kwargs)

    params = nn.meta.unbox(module.variables['params'])
    call = lambda x: next_fun(x, *rest, **kwargs)
    return op(call, sent, x, path, name, params, _at(feedback, path))

  def fused(module, carry, x):
    """An OptimizedLSTMCell is two ops, whose kernels are those of the gates side by side."""
    params = nn.meta.unbox(module.variables['params'])
    drawn, (c, h) = _at(feedback, '/'.join(module.path)), carry

    def side_by_side(x, side):
      join = lambda tree: {name: jnp.concatenate([tree[side + gate][name] for gate in 'ifgo'], -1)
                           for name in tree[side + 'i'] if name != 'error'}
      own, fed = join(params), join(drawn) if drawn else {}
      if rule == 'dfa':  # One op: one matrix for all of the signal, at its first kernel.
        fed = drawn[side + 'i']
      call = lambda x: x @ own['kernel'] + own.get('bias', 0)
      return op(call, lambda b, x: x @ b, x, None, 'kernel', own, fed)

    i, f, g, o = jnp.split(side_by_side(h, 'h') + side_by_side(x, 'i'), 4, -1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h

  def updated(y, path):
    """y, whose layer gets the Hebbian update."""
    return receiving(y, _hebbian(y, error, (phi or {}).get(path)))

  def op(call, sent, x, path, name, params, drawn):
    """call(x), learning by the rule; sent(b, x) is the same with weights b and no bias."""
    tokens = not jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    if rule == 'hebb':
      # Zeros are sent down, not nothing: a cotangent must arrive for `receiving` to replace it.
      y = call(x if tokens else receiving(x, jnp.zeros_like(x)))
      return y if path in readouts else updated(y, path)
    if tokens:
      b = params.get('feedback_embedding')  # Of kp, if the readout is tied: it learns here too.
      return call(x) if b is None else call(x) + (b[x] - stop(b[x]))
    if rule == 'dfa':
      return call(receiving(x, _broadcast(error, drawn['error'], x)))
    b = _backward_weight(rule, name, params, drawn)
    return call(stop(x)) + (sent(b, x) - stop(sent(b, x)))

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


def _after_lookup(module):
  """Whether it is the dropout after what a module of the user's own looks up in its embedding."""
  return (isinstance(module, nn.Dropout) and module.parent is not None
          and 'embedding' in module.parent.variables.get('params', {}))


def _broadcast(error, b, x):
  """B e for each sample (or position), like x; one for all positions where B has x's last axis."""
  signal = error.reshape(-1, b.shape[0]) @ b
  return jnp.repeat(signal, x.size // signal.size, 0).reshape(x.shape)


def _backward_weight(rule, name, params, drawn):
  if rule == 'kp':
    return params[f'feedback_{name}']  # Not stopped: it gets W's own update, as op(B, x) is there.
  w = stop(params[name])
  if rule == 'usf':
    return jnp.sign(w) * jnp.sqrt(jnp.mean(w**2))
  b = drawn[name]
  return {'fa': b, 'frsf': jnp.sign(w) * b}[rule]


def _hebbian(y, error, phi):
  """-|Delta|^2 phi(h) / n, where e = -Delta / n; by position where y has the error's positions."""
  n = math.prod(error.shape[:-1])
  positions = error.ndim - 1 if y.shape[:error.ndim - 1] == error.shape[:-1] else 1
  squares = jnp.sum((n * error)**2, tuple(range(positions, error.ndim)))
  squares = squares.reshape(squares.shape + (1,) * (y.ndim - squares.ndim))
  return stop(-squares * (phi(y) if phi else y) / n)


def _at(tree, path):
  """What is at a path; nothing for ops without feedback of their own."""
  for part in path.split('/'):
    tree = (tree or {}).get(part)
  return nn.meta.unbox(tree)


@contextlib.contextmanager
def _left_alone():
  token = _inside.set(True)
  try:
    yield
  finally:
    _inside.reset(token)
