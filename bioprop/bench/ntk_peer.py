"""neural-tangents on the networks of `bioprop.bench.ntk_speed`, in a process of its own.

Its latest release, 0.6.5, runs on jax up to 0.4.25 only, so that it has an environment of its own:
nothing of bioprop is imported here. Reads a case from a line of its input and answers with a line:
{"network", "n", "trace", "implementation"} with {"seconds"}, of one call after the first.
"""
import json
import sys
import time

import jax
import jax.numpy as jnp
import neural_tangents as nt

WIDTHS = {'mlp': (784, 1024, 1024, 1024, 10), 'cnn': (3, 32, 64, 64, 10)}


def params(network):
  """Weights and biases of each layer."""
  widths, keys = WIDTHS[network], jax.random.split(jax.random.key(0), 4)
  sizes = list(zip(widths[:-1], widths[1:]))
  shapes = [s if network == 'mlp' or s[1] == 10 else (3, 3, *s) for s in sizes]
  return [(jax.random.normal(key, shape) / 30, jnp.zeros(shape[-1]))
          for key, shape in zip(keys, shapes)]


def mlp(params, x):
  """Three hidden layers of ReLUs."""
  for w, b in params[:-1]:
    x = jax.nn.relu(x @ w + b)
  return x @ params[-1][0] + params[-1][1]


def cnn(params, x):
  """Three convolutions of ReLUs, the second and third of stride 2, and the mean over locations."""
  for number, (w, b) in enumerate(params[:-1]):
    strides = (1, 1) if number == 0 else (2, 2)
    x = jax.nn.relu(jax.lax.conv_general_dilated(
        x, w, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + b)
  return x.mean((1, 2)) @ params[-1][0] + params[-1][1]


def main():
  """Answers until the input ends."""
  compiled = {}
  for line in sys.stdin:
    case = json.loads(line)
    network, n = case['network'], case['n']
    theta = params(network)
    x = jax.random.normal(jax.random.key(1), (n, 784) if network == 'mlp' else (n, 32, 32, 3))
    if line not in compiled:
      compiled[line] = jax.jit(nt.empirical_ntk_fn(
          mlp if network == 'mlp' else cnn, trace_axes=(-1,) if case['trace'] else (),
          vmap_axes=0, implementation=case['implementation']))
      compiled[line](x, None, theta).block_until_ready()
    began = time.perf_counter()
    compiled[line](x, None, theta).block_until_ready()
    print(json.dumps({'seconds': time.perf_counter() - began}), flush=True)


if __name__ == '__main__':
  main()
