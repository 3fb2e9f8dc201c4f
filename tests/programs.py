"""Runs our programs in processes that find JAX imported: most of a short program's life is that.

Each line of the input is {"argv": [...], "module": a name or null, "cwd", "out", "err", "seconds"};
each line of the output is the status of a process that ran `python argv...`, or `python -m module`.
"""
import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import sys
import warnings

ROOT = str(pathlib.Path(__file__).resolve().parents[1])
IMPORTED = ('matplotlib.backends.backend_agg', 'sklearn.datasets', 'bioprop.training',
            'bioprop.bench.pictures', 'bioprop.bench.plots')


def serve():
  """Returns in a process of its own for each line, with the line."""
  for line in sys.stdin:
    with warnings.catch_warnings(action='ignore'):  # JAX has threads, but none before it computes.
      child = os.fork()
    if not child:
      return json.loads(line)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
  sys.exit()


def become(argv, module, cwd, out, err, seconds):
  """This process is from now on the program."""
  os.chdir(cwd)
  for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, descriptor)
    os.close(opened)
  signal.alarm(seconds)
  sys.path[0] = cwd if module else os.path.dirname(argv[0])
  sys.argv = [module, *argv] if module else argv
  if module:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  else:
    runpy.run_path(argv[0], run_name='__main__')


if __name__ == '__main__':
  sys.path[0] = ROOT
  for name in IMPORTED:
    importlib.import_module(name)
  gc.freeze()  # Or each process would walk through all of it when it ends.
  become(**serve())
