"""Theory beside networks: figures, and a table of claims.

    bioprop theory --config=theory_fa [--out=DIR] [--overwrite]

Solves the theory, trains networks beside it, and writes one figure for each claim, with
both in it, and claims.md: claim, measured, predicted, agrees. Without --out the directory is
runs/<name of the configuration>. Results that are there are not overwritten unless it is said.
"""
import functools
import pathlib

from absl import flags, logging

from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory.claim import draw, table
from bioprop.bench.theory.experiments import run
from bioprop.errors import WorkdirError
from bioprop.training import cli

_TABLE = 'claims.md'
PROGRAM = cli.Program(
    'theory_', arguments=False, example='theory_fa',
    base=functools.partial(config_lib.base, 'dynamics'), check=config_lib.check)


def define_flags() -> None:
  """Defines --config, --out and --overwrite."""
  cli.define_config(None, 'The experiment, by name or as a file.', PROGRAM)
  flags.DEFINE_string('out', None, 'Directory for figures and table.')
  flags.DEFINE_bool('overwrite', False, 'Replace results that are there.')


def main(argv):
  """Runs the experiment."""
  del argv  # Parsed.
  logging.set_verbosity(logging.INFO)
  config = flags.FLAGS.config
  name = cli.config_name()
  with cli.reported(resumes=False):
    out = pathlib.Path(flags.FLAGS.out or pathlib.Path('runs') / name)
    there = [*out.glob(_TABLE), *out.glob(f'{name}_*.png')]
    if there and not flags.FLAGS.overwrite:
      raise WorkdirError(f'{there[0]} exists. Say --overwrite to replace what is there, or '
                         f'--out=DIR for another place.')
    out.mkdir(parents=True, exist_ok=True)
    claims = run(config)
    for claim in claims:
      draw(claim, out / f'{name}_{claim.name}.png')
    text = table(claims)
    (out / _TABLE).write_text(text)
  print(text, end='')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
