"""Curves of the rules' pages: drawn when the site is built, from docs/curves.json.

That file is made from runs, by

    bioprop sweep RUNS digits_mlp --seeds=0,1,2,3,4 --rules='bp,fa,dfa,usf,brsf,frsf,kp,pfa,dkp,\\
        mirror,hebb(scale=0.001),drtp,last_layer,align_prop,align_ada,align_zero,gln'
    bioprop sweep RUNS delayed_match_rnn --seeds=0,1,2 --rules='bp,rflo,eprop,tbptt(steps=5)'
    python docs/hooks/curves.py RUNS
"""
import io
import json
import pathlib
import statistics
import sys

from mkdocs.exceptions import PluginError

DATA = pathlib.Path(__file__).resolve().parents[1] / 'curves.json'
TASKS = {'digits_mlp': 'digits, 128 ReLUs', 'delayed_match_rnn': 'delayed match, 64 leaky units'}
_INK = '#010203'  # Becomes the colour of the page's text, light or dark.
_COLOURS = ('#3a8fd6', '#e07b00')  # Blue and orange: told apart by all, on white and on black.


def collect(runs: pathlib.Path) -> dict:
  """Validation accuracies over epochs, and those of the test, of all runs below a directory."""
  found = {}
  for path in sorted(runs.glob('*/*/metrics.jsonl')):
    config = json.loads((path.parent / 'config.json').read_text())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    run = found.setdefault(path.parent.parent.name, {}).setdefault(
        config['rule'], {'options': {key: value for key, value in config['rule_options'].items()
                                     if value is not None}, 'validation': [], 'test': []})
    run['validation'].append([round(row['validation_accuracy'], 4)
                              for row in rows if 'validation_accuracy' in row])
    run['test'] += [round(row['test_accuracy'], 4) for row in rows if 'test_accuracy' in row]
  return found


def figure(name: str) -> str:
  """The curve of a rule beside bp's: HTML with an SVG in it.

  Args:
    name: the rule's.

  Raises:
    PluginError: if docs/curves.json has no run of it.
  """
  data = json.loads(DATA.read_text())
  for task, rules in data.items():
    if name in rules:
      shown = {label: rules[label] for label in dict.fromkeys(['bp', name])}
      tests = '; '.join(_said(label, run) for label, run in shown.items())
      caption = (f'Validation accuracy in % over epochs, {TASKS[task]} (mean and range over '
                 f'{len(rules[name]["test"])} seeds). Test accuracy: {tests}.')
      return (f'<figure class="curve" role="img" aria-label="{caption}" data-search-exclude>'
              f'{_draw(shown)}<figcaption>{caption}</figcaption></figure>')
  raise PluginError(f'docs/curves.json has no run of the rule {name!r}: train it and type '
                    f'python docs/hooks/curves.py RUNS.')


def _label(name: str, run: dict) -> str:
  options = ', '.join(f'{key}={value}' for key, value in run['options'].items())
  return f'{name}({options})' if options else name


def _said(name: str, run: dict) -> str:
  test = [100 * value for value in run['test']]
  return f'{_label(name, run)} {statistics.mean(test):.1f} ± {statistics.stdev(test):.1f} %'


def _draw(shown: dict) -> str:
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  style = {'svg.fonttype': 'none', 'svg.hashsalt': 'bioprop', 'font.family': 'sans-serif',
           'text.color': _INK, 'axes.labelcolor': _INK, 'axes.edgecolor': _INK,
           'xtick.color': _INK, 'ytick.color': _INK, 'axes.spines.top': False,
           'axes.spines.right': False, 'legend.frameon': False, 'font.size': 11}
  with plt.rc_context(style):
    drawn, axes = plt.subplots(figsize=(6.4, 3.0), layout='constrained')
    for (name, run), colour, dashes in zip(shown.items(), _COLOURS, ('--', '-')):
      seeds = [[100 * value for value in seed] for seed in run['validation']]
      epochs = range(1, 1 + len(seeds[0]))
      by_epoch = list(zip(*seeds))
      axes.fill_between(epochs, list(map(min, by_epoch)), list(map(max, by_epoch)),
                        color=colour, alpha=0.25, linewidth=0)
      axes.plot(epochs, list(map(statistics.mean, by_epoch)), dashes, color=colour, linewidth=2,
                label=_label(name, run))
    axes.set_xlabel('epoch')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel('accuracy, %')
    axes.legend(loc='lower right')
    held = io.StringIO()
    drawn.savefig(held, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    plt.close(drawn)
  svg = held.getvalue()
  svg = svg[svg.index('<svg'):].replace(_INK, 'currentColor')
  return ''.join(line.strip() + ' ' for line in svg.splitlines())


if __name__ == '__main__':
  if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
    sys.exit('Say which directory holds the runs: python docs/hooks/curves.py RUNS')
  made = collect(pathlib.Path(sys.argv[1]))
  DATA.write_text(json.dumps(made, separators=(',', ':')).replace('"},"', '"},\n"') + '\n')
