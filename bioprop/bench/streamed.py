"""Time and memory of credit in time: offline over whole sequences, and online from a stream."""
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.bench.steps import peak_mb
from bioprop.fronts.plug import plug
from bioprop.rules import make
from bioprop.streams.online import online as online_of

RULES = ('bp', 'rflo', 'eprop', 'tbptt')  # Without a rule: what is timed.
_BATCH, _INPUTS, _WIDTH, _OUTPUTS = 8, 8, 64, 2
_ONLINE = ('rflo', 'eprop')


class _Net(nn.Module):
  """A GRU and a readout of every step."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(_OUTPUTS)(nn.RNN(nn.GRUCell(_WIDTH))(x))


def measure(rules: list[str], lengths: list[int], rounds: int) -> list[dict[str, Any]]:
  """Times the gradient of a loss summed over a sequence, whose inputs are drawn as it goes.

  Args:
    rules: what can act on a recurrent network, keys of `RULES`.
    lengths: steps of the sequences.
    rounds: how many times each program gets its turn.

  Returns:
    A row for each rule, form (offline; online where the rule can) and length: step_ms (median over
    rounds, of one step of time), ratio (median over rounds of that over backprop's offline, of the
    same length and round) and peak_mb.
  """
  rows = []
  for length in lengths:
    made = {('bp', 'offline'): offline('bp', length)}
    made |= {(rule, 'offline'): offline(rule, length) for rule in rules}
    made |= {(rule, 'online'): online(rule, length) for rule in rules if rule in _ONLINE}
    times = {which: [] for which in made}
    for number in range(rounds + 1):
      for which, (program, arguments) in made.items():
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        if number:  # The first turn warms up.
          times[which].append((time.perf_counter() - began) / length)
    rows += [{'model': 'rnn', 'rule': rule, 'form': form, 'steps': length,
              'step_ms': round(1e3 * statistics.median(times[rule, form]), 4),
              'ratio': round(statistics.median(
                  own / bp for own, bp in zip(times[rule, form], times['bp', 'offline'])), 2),
              'peak_mb': round(peak_mb(made[rule, form][0]), 2)}
             for rule, form in made if rule in rules]
  return rows


def offline(rule: str, length: int):
  """A compiled gradient of whole sequences, and its arguments."""
  model = plug(_Net(), _rule(rule))
  variables = model.init(jax.random.key(1), jnp.zeros((_BATCH, 2, _INPUTS)))

  def gradient(variables, key):
    x = jnp.swapaxes(jax.vmap(lambda t: _input(key, t))(jnp.arange(length)), 0, 1)
    return jax.grad(lambda params: _loss(model.apply({**variables, 'params': params}, x)))(
        variables['params'])

  arguments = (variables, jax.random.key(0))
  return jax.jit(gradient).lower(*arguments).compile(), arguments


def online(rule: str, length: int):
  """The same gradient, summed up step by step."""
  stream = online_of(_Net(), _rule(rule))
  variables = stream.model.init(jax.random.key(1), jnp.zeros((_BATCH, 2, _INPUTS)))

  def gradient(variables, key, state):
    def step(t, known):
      state, total = known
      now = stream.step(variables, state, _input(key, t), _loss)
      return now.state, jax.tree.map(jnp.add, total, now.grads)

    zeros = jax.tree.map(jnp.zeros_like, variables['params'])
    return jax.lax.fori_loop(0, length, step, (state, zeros))[1]

  key = jax.random.key(0)
  arguments = (variables, key, stream.init(variables, _input(key, jnp.int32(0))))
  return jax.jit(gradient).lower(*arguments).compile(), arguments


def _rule(name: str) -> Any:
  return make(name, steps=5) if name == 'tbptt' else name


def _input(key, t):
  return jax.random.normal(jax.random.fold_in(key, t), (_BATCH, _INPUTS))


def _loss(out):
  return jnp.sum(out**2)
