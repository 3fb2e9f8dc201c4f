r"""Time of the effective eNTK, beside neural-tangents and beside the product that it is made of.

    python -m bioprop.bench.ntk_speed [--json=FILE] [--networks=mlp,cnn] [--rounds=5]
        [--peer=PYTHON]

The MLP is 784-1024-1024-1024-10, on 128 and on 512 samples; the convolutional network has three
layers of 3x3 on 32x32 images, 64 samples. Kernels are full, [n, n, 10, 10], and traced over the
outputs. All are measured in turns, round after round; figures are medians over rounds, and ratios
medians of ratios within a round.

  floor  the products of the cotangents of all hidden layers, [n C, O] with [O, n C], or [n, C O]
         with [C O, n] under the trace: no kernel of the MLP is made without them
  ntk    the kernel of backprop, which is symmetric: `measure.ntk`
  entk   that of feedback alignment, which is not: `measure.entk`
  peer   neural-tangents, 'structured derivatives'; --implementation=2 takes its NTK-vector
         products, and 1 its default, Jacobian contraction (both far slower on the MLP)

neural-tangents 0.6.5 runs on old versions of jax only, and so in a process of its own:

    python3.11 -m venv peer
    peer/bin/pip install neural-tangents==0.6.5 jax==0.4.25 jaxlib==0.4.25 'numpy<2' 'scipy<1.13'
    python -m bioprop.bench.ntk_speed --peer=peer/bin/python
"""
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
from absl import app, flags, logging

from bioprop import measure
from bioprop.bench import peer as processes
from bioprop.fronts.plug import plug
from bioprop.models import MLP
from bioprop.probes.jacobian import jacobians
from bioprop.training import cli

CASES = {'mlp': (128, 512), 'cnn': (64,)}  # Samples, by network.
_HIDDEN = {'mlp': (1024, 1024, 1024)}
_PEER = pathlib.Path(__file__).with_name('ntk_peer.py')


class ConvNet(nn.Module):
  """Three convolutions of ReLUs, two of stride 2, and the mean over locations: as in ntk_peer."""

  @nn.compact
  def __call__(self, x):
    for features, strides in ((32, 1), (64, 2), (64, 2)):
      x = nn.relu(nn.Conv(features, (3, 3), strides=strides)(x))
    return nn.Dense(10)(x.mean((1, 2)))


class Peer(processes.Peer):
  """neural-tangents in a process of its own."""

  def __init__(self, python: str, implementation: int = 3, program: pathlib.Path = _PEER):
    """Starts `program` under `python`; raises UsageError where that cannot be started."""
    super().__init__(python, program, 'does it have neural-tangents 0.6.5 and jax 0.4.25? '
                     'See the top of bioprop/bench/ntk_speed.py.')
    self._implementation = implementation

  def seconds(self, **case) -> float:
    """Time of one call, after the first; raises UsageError where neural-tangents is missing."""
    return self.ask(**case, implementation=self._implementation)['seconds']


def measured(network: str, n: int, trace: bool, rounds: int, peer: Peer | None) -> list[dict]:
  """Times one case.

  Args:
    network: a key of `CASES`.
    n: samples.
    trace: over the outputs.
    rounds: how many times each gets its turn.
    peer: neural-tangents, if it is there.

  Returns:
    A row for each: network, n, kernel, what, ms, and over_ntk, the ratio to `ntk`.
  """
  timed: dict[str, Callable[[], float]] = {
      what: _timer(call) for what, call in _calls(network, n, trace).items()}
  if peer is not None:
    timed['peer'] = lambda: peer.seconds(network=network, n=n, trace=trace)
  times = [{what: time() for what, time in timed.items()} for _ in range(rounds + 1)][1:]
  return [{'network': network, 'n': n, 'kernel': 'traced' if trace else 'full', 'what': what,
           'ms': round(1e3 * statistics.median(one[what] for one in times), 3),
           'over_ntk': round(statistics.median(one[what] / one['ntk'] for one in times), 2)}
          for what in timed]


def _calls(network, n, trace):
  shape = (n, 784) if network == 'mlp' else (n, 32, 32, 3)
  model = MLP(hidden=_HIDDEN['mlp'], activation='relu') if network == 'mlp' else ConvNet()
  x = jax.random.normal(jax.random.key(1), shape)
  plugged = plug(model, 'fa')
  variables = jax.jit(plugged.init)(jax.random.key(0), x)
  exact, ruled = jacobians(model, x), jacobians(plugged, x)
  of_plain = exact.true({'params': variables['params']})
  of_rule = ruled.true(variables), ruled.pseudo(variables)
  calls = {'ntk': lambda: measure.ntk(of_plain, x, trace=trace),
           'entk': lambda: measure.entk(*of_rule, x, trace=trace)}
  if network in _HIDDEN:
    g = jax.random.normal(jax.random.key(2), (n, 10 * sum(_HIDDEN[network])))
    g = g if trace else g.reshape(n * 10, -1)
    product = jax.jit(lambda g: g @ g.T)
    calls['floor'] = lambda: product(g)
  return calls


def _timer(call):
  def seconds():
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
  return seconds


def define_flags() -> None:
  """Defines --networks, --json, --rounds, --implementation, --peer."""
  flags.DEFINE_list('networks', list(CASES), 'Networks to measure.')
  flags.DEFINE_string('json', None, 'File for the rows, a list of objects.')
  flags.DEFINE_integer('rounds', 5, 'Rounds of each case.', lower_bound=1)
  flags.DEFINE_integer('implementation', 3, 'Of neural-tangents.', 1, 3)
  flags.DEFINE_string('peer', None, 'Python of an environment with neural-tangents.')


def main(argv):
  """Prints a table, and writes the rows as JSON where asked to."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  for name in flags.FLAGS.networks:
    if name not in CASES:
      raise app.UsageError(f'--networks has {name!r}; choose from {", ".join(CASES)}.')
  print(f'{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}')
  peer = Peer(flags.FLAGS.peer, flags.FLAGS.implementation) if flags.FLAGS.peer else None
  rows = []
  print(f'{"network":>8}{"n":>5}{"kernel":>8}  {"what":<6}{"ms":>10}{"/ ntk":>8}')
  for network in flags.FLAGS.networks:
    for n in CASES[network]:
      for trace in (False, True):
        for row in measured(network, n, trace, flags.FLAGS.rounds, peer):
          rows.append(row)
          print('{network:>8}{n:>5}{kernel:>8}  {what:<6}{ms:>10}{over_ntk:>8}'.format(**row),
                flush=True)
  if peer is not None:
    peer.close()
  if flags.FLAGS.json:
    pathlib.Path(flags.FLAGS.json).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
