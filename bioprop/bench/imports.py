"""How long `import bioprop` takes until it is of use, beside what Flax takes."""
import os
import pathlib
import statistics
import subprocess
import sys

FLAX = 'import flax.linen, flax.nnx'
# All that is public is looked up, and so imported, and a model is plugged; nothing is traced.
OURS = """
import bioprop
for module in (bioprop, bioprop.measure, bioprop.theory):
  for name in module.__all__:
    getattr(module, name)
import flax.linen as nn
class MLP(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))
bioprop.plug(MLP(), 'dfa')
"""
_TIMED = 'import time\nbegan = time.perf_counter()\n{}\nprint(time.perf_counter() - began)'


def measure(rounds: int) -> list[dict]:
  """Times both in fresh processes, in turns, after one of each that fills caches.

  Args:
    rounds: how many processes each gets.

  Returns:
    A row for each: what, seconds (median), ratio (median over rounds of the time over that of Flax
    in the same round).
  """
  codes = {'flax': FLAX, 'bioprop': OURS}
  times: dict[str, list[float]] = {what: [] for what in codes}
  for number in range(rounds + 1):
    for what, code in codes.items():
      elapsed = _seconds(code)
      if number:
        times[what].append(elapsed)
  return [{'what': what, 'seconds': round(statistics.median(own), 3),
           'ratio': round(statistics.median(
               one / flax for one, flax in zip(own, times['flax'])), 2)}
          for what, own in times.items()]


def _seconds(code: str) -> float:
  """What it takes in a process of its own, which sees this very package."""
  package = str(pathlib.Path(__file__).resolve().parents[2])
  path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH')]))
  done = subprocess.run([sys.executable, '-c', _TIMED.format(code)], capture_output=True, text=True,
                        check=True, env={**os.environ, 'PYTHONPATH': path})
  return float(done.stdout.splitlines()[-1])
