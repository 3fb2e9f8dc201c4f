"""Runs as tables and figures: report.html, which needs no network, and its parts for papers.

    bioprop report runs/sweep                     # a sweep, or all runs below a directory
    bioprop report runs/mnist-fa-seed0            # one run: its curves, and what its probes found
    bioprop report runs/one runs/other --out=report --metric=test_loss

Mean and standard deviation over seeds, differences to bp by seed with bootstrap intervals, what
was chosen on the validation split and among what, epochs, time, operations; curves, angles,
alignment, kernels; versions, hardware, revision. Into FOLDER:

    report.html    all of it in one file
    report.md      the same in Markdown
    report.tex     the same in LaTeX, tables by booktabs
    report.csv     one line per run
    figures/       every figure as PNG and PDF

Files of an older report are replaced, others never.
"""
import io
import pathlib

import tqdm
from absl import flags, logging

from bioprop.bench import style
from bioprop.bench.report import as_csv, as_html, as_latex, as_markdown, content, runs, written
from bioprop.bench.report.blocks import Picture
from bioprop.bench.sweep.table import UNITS
from bioprop.errors import WorkdirError
from bioprop.training import cli

PROGRAM = cli.PLAIN
_DOTS = 300  # An inch, of PNG.
_META = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}, 'png': {}}  # The same each time.


def define_flags() -> None:
  """Defines --out and --metric."""
  flags.DEFINE_string('out', None, 'Folder of the report; without: RUNS/report.')
  flags.DEFINE_enum('metric', None, list(UNITS), 'What is compared; without: what the sweep was '
                    'for, or accuracy, or R^2 where there is none.')


def make(roots: list[pathlib.Path], asked: str | None) -> dict[str, bytes]:
  """Returns the files of a report, by name.

  Args:
    roots: directories of runs.
    asked: metric; None: that of each sweep.

  Raises:
    WorkdirError: if there are no runs, one is damaged, or has no such metric.
  """
  found = runs.find(roots)
  compared = content.columns(found, asked)
  with style.for_print():
    blocks = list(content.report(found, compared, f'Report on {", ".join(map(_name, roots))}'))
    figures = [block for block in blocks if isinstance(block, Picture)]
    for block in tqdm.tqdm(figures, 'laying out figures', disable=None):
      block.figure.draw_without_rendering()
      block.figure.set_layout_engine('none')  # Once for all formats: it is most of the time.
    made = {f'figures/{block.name}.{kind}': _drawn(block, kind)
            for block in tqdm.tqdm(figures, 'writing figures', disable=None)
            for kind in ('png', 'pdf')}
    made['report.html'] = as_html.html(blocks, lambda block: _drawn(block, 'svg'))
  made['report.md'] = as_markdown.markdown(blocks, lambda block: f'figures/{block.name}.png')
  made['report.tex'] = as_latex.latex(blocks, lambda block: f'figures/{block.name}.pdf')
  made['report.csv'] = as_csv.table(found.runs, [
      run for column in compared for cell in column.cells for run in cell.runs])
  return made


def _name(root):
  return root.resolve().name


def _drawn(block: Picture, kind: str) -> bytes:
  file = io.BytesIO()
  block.figure.savefig(file, format=kind, dpi=_DOTS, metadata=_META[kind])
  return file.getvalue()


def main(argv):
  """Writes the report, and prints where."""
  logging.set_verbosity(logging.WARNING)
  with cli.reported():
    if not argv[1:]:
      raise WorkdirError('there are no runs to report on. Type for instance: '
                         'bioprop report runs/sweep')
    roots = [pathlib.Path(root).expanduser() for root in argv[1:]]
    made = make(roots, flags.FLAGS.metric)
    folder = pathlib.Path(flags.FLAGS.out or roots[0] / 'report').expanduser()
    written.write(folder, made)
  print(f'{folder / "report.html"}, and report.md, report.tex, report.csv and figures/ beside it')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
