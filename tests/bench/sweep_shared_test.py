"""Several processes train one sweep: nothing is lost when one is killed, and nothing done twice."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bioprop.bench.sweep import plan, table
from bioprop.training import metrics

CONFIG = '''
from bioprop.training import base


def get_config():
  config = base()
  config.model_options.hidden = (8,)
  config.validation = 100
  config.epochs = 6
  config.batch_size = 100
  config.learning_rate = 0.05
  return config
'''
# Epochs wait, so that all processes are at work when one is killed; what each does is noted.
PROGRAM = '''
import os, sys, time
from bioprop.bench.sweep import plan, work
from bioprop.training.trainer import Trainer

root, config, notes = sys.argv[1:]
plain = Trainer.epoch

def epoch(self, state, number, *args):
  with open(notes, 'a') as file:
    file.write(f'{os.getpid()} {self.config.rule} {self.config.seed} {number}\\n')
  time.sleep(.3)
  return plain(self, state, number, *args)

Trainer.epoch = epoch
work._LOOK_AGAIN = .2
runs = plan.plan(root, [config], ['bp', 'fa', 'dfa'], [0, 1])
print('ready', flush=True)
work.train(runs, None, replicas=1)
'''


def _notes(path):
  lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
  return [(int(pid), rule, int(seed), int(epoch)) for pid, rule, seed, epoch in lines]


@pytest.mark.slow
def test_three_processes_one_of_which_is_killed(tmp_path):
  """All six runs are whole; only what the killed one had begun was computed again."""
  (tmp_path / 'small.py').write_text(CONFIG)
  (tmp_path / 'program.py').write_text(PROGRAM)
  root, notes = tmp_path / 'runs', tmp_path / 'notes'
  command = [sys.executable, tmp_path / 'program.py', root, tmp_path / 'small.py', notes]
  env = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  at_work = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) for _ in range(3)]
  try:
    victim = at_work[0]
    until = time.monotonic() + 120
    # Killed in the middle of a run that has a checkpoint already.
    while not any(pid == victim.pid and epoch >= 3 for pid, _, _, epoch in _notes(notes)):
      assert time.monotonic() < until and victim.poll() is None
      time.sleep(.05)
    victim.send_signal(signal.SIGKILL)
    for process in at_work[1:]:
      _, err = process.communicate(timeout=200)
      assert process.returncode == 0, err
  finally:
    for process in at_work:
      process.kill()
      process.communicate()
  runs = plan.plan(root, [str(tmp_path / 'small.py')], ['bp', 'fa', 'dfa'], [0, 1])
  assert all(table.is_done(one) for one in runs)
  for one in runs:
    records = metrics.read(one.path)
    assert [record.get('epoch') for record in records] == [1, 2, 3, 4, 5, 6, None]
    assert (one.path / 'curves.png').exists()
  seen = _notes(notes)
  assert len({pid for pid, *_ in seen}) == 3
  last = [(rule, seed) for pid, rule, seed, _ in seen if pid == victim.pid][-1]
  for one in runs:
    own = [(pid, epoch) for pid, rule, seed, epoch in seen
           if (rule, seed) == (one.rule, one.config.seed)]
    if (one.rule, one.config.seed) != last:
      assert [epoch for _, epoch in own] == [1, 2, 3, 4, 5, 6] and len({p for p, _ in own}) == 1
    else:  # The survivor went on from a checkpoint, and not from the start.
      again = [epoch for pid, epoch in own if pid != victim.pid]
      assert again == list(range(again[0], 7)) and again[0] > 1
  assert json.loads((runs[0].path / 'config.json').read_text())['epochs'] == 6
