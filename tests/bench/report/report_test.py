"""The whole report: what each of its files says, and the program."""
import base64
import csv
import html.parser
import io
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest

from bioprop.bench.report import __main__ as program
from bioprop.bench.report import as_latex
from bioprop.errors import WorkdirError


def _cells(markdown, title):
  """The rows of a table in Markdown, by its title."""
  lines = markdown.split(f'**{title}**\n\n')[1].split('\n\n')[0].replace('\\', '').splitlines()
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  return [rows[0], *rows[2:]]


def test_what_the_tables_say(made):
  """Numbers by hand: test accuracies of seeds are a hundredth apart."""
  text = made['report.md'].decode()
  head, *rows = _cells(text, r'digits\_mlp: test accuracy (%)')
  assert head == ['width', 'rule', 'test accuracy (%)', 'n', 'difference to bp [95 %]', 'chosen']
  chosen = 'learning_rate = 0.1'
  assert rows == [['8', 'bp', '19.0 ± 1.0', '3, 1 unfinished', '–', chosen],
                  ['8', 'fa(rho=0.5)', '9.0 ± 1.0', '3', '−10.00 [−10.00, −10.00]', chosen],
                  ['64', 'bp', '75.0 ± 1.0', '3', '–', chosen],
                  ['64', 'fa(rho=0.5)', '65.0 ± 1.0', '3', '−10.00 [−10.00, −10.00]', chosen]]
  head, *rows = _cells(text, r'digits\_mlp: costs')
  assert head[2:] == ['epochs', 'time of a run', 'parameters', 'FLOPs of a step: forward',
                      'backward', 'of training']  # Which has 20 steps.
  assert rows[0] == ['8', 'bp', '2', '3 s', '81.7 k', '8.16 M', '14.4 M', '451 M']
  tried = _cells(text, r'digits\_mlp: what was tried for each rule')
  assert tried[0][2:] == ['tried', 'validation accuracy (%)', 'n', 'chosen']
  assert tried[3:] == [
      ['width = 64', 'fa(rho=0.5)', 'learning_rate = 0.1', '50', '3', 'yes'],
      ['width = 64', 'fa(rho=0.5)', 'learning_rate = 3.0', '40', '2, 1 diverged', '']]
  assert 'nan & 100 % \\<b\\>\\|\\</b\\> of\\_it' in text
  where = dict(_cells(text, 'Where the runs were trained')[1:])
  assert where['device'] == '1 × NVIDIA H100 (gpu)' and where['git revision'] == (
      'a1b2c3d4e5f6, changed')
  names = re.findall(r'!\[.*\]\((.*)\)', text)
  assert names and all(made[name].startswith(b'\x89PNG') for name in names)
  assert 'figures/digits-mlp-over-width.png' in names
  assert 'figures/digits-mlp-width-8-angle.png' in names


def test_one_line_of_csv_for_each_run(made):
  rows = list(csv.DictReader(io.StringIO(made['report.csv'].decode())))
  assert len(rows) == 19
  by_path = {pathlib.Path(row['path']).name: row for row in rows}
  row = by_path['fa-0.1-64-2']
  assert row['shown'] == 'True' and by_path['fa-3.0-64-1']['shown'] == 'False'
  assert (row['column'], row['rule'], row['seed'], row['state'], row['epochs']) == (
      'digits_mlp', 'fa(rho=0.5)', '2', 'finished', '2')
  assert (row['over.model_options.width'], row['tuned.learning_rate']) == ('64', '0.1')
  assert float(row['test_accuracy']) == 0.66 and float(row['seconds']) == 3.0
  assert (row['flops_forward'], row['device']) == ('8160000.0', 'NVIDIA H100')
  assert by_path['none']['state'] == 'unfinished' and by_path['none']['test_accuracy'] == ''
  assert by_path['fa-3.0-64-2']['reason'] == 'nan & 100 % <b>|</b> of_it'


class _Page(html.parser.HTMLParser):
  """What a page refers to, and the order of its headings."""

  def __init__(self, text):
    super().__init__()
    self.sources, self.links, self.ids, self.alts, self.levels, self.tags = [], [], [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    named = dict(attributes)
    self.tags.append(tag)
    self.sources += [named[name] for name in ('src', 'srcset', 'data') if name in named]
    self.links += [named['href']] if 'href' in named else []
    self.ids += [named['id']] if 'id' in named else []
    self.alts += [named.get('alt')] if tag == 'img' else []
    self.levels += [int(tag[1])] if re.fullmatch('h[1-6]', tag) else []


def test_the_page_needs_nothing_else(made):
  """Figures are in it, links lead within it, headings descend by one."""
  text = made['report.html'].decode()
  page = _Page(text)
  assert page.sources and all(one.startswith('data:image/svg+xml;base64,')
                              for one in page.sources)
  assert not any(tag in page.tags for tag in ('script', 'link', 'iframe', 'object'))
  assert 'url(' not in text and '@import' not in text
  assert [link[1:] for link in page.links] == page.ids and len(set(page.ids)) == len(page.ids)
  assert all(alt and len(alt) > 30 for alt in page.alts)
  assert page.levels[0] == 1 and page.levels.count(1) == 1
  assert all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:]))
  assert 'nan &amp; 100 % &lt;b&gt;|&lt;/b&gt; of_it' in text
  for one in page.sources:
    svg = base64.b64decode(one.partition(',')[2])
    assert b'<svg' in svg and not re.search(rb'(href|src)="https?:', svg)


def test_latex_escapes_what_it_would_read(made):
  text = made['report.tex'].decode()
  assert r'digits\_mlp: test accuracy (\%)' in text
  assert r'$-$10.00 {[}$-$10.00, $-$10.00{]}' in text and r'19.0 $\pm$ 1.0' in text
  assert r'nan \& 100 \% \textless{}b\textgreater{}\textbar{}' in text
  assert text.isascii() and text.count(r'\begin{tabular}') == text.count(r'\toprule')
  assert as_latex.escaped('--a=1 – 2') == r'-{}-a=1 \textendash{} 2'
  assert as_latex.escaped('\\x{2}^~$#"é∂') == (
      r"\textbackslash{}x\{2\}\textasciicircum{}\textasciitilde{}\$\#''éU+2202")


def test_latex_compiles(made, tmp_path):
  if shutil.which('pdflatex') is None:
    pytest.skip('there is no pdflatex on PATH')
  program.written.write(tmp_path / 'out', made)
  done = subprocess.run(['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'report.tex'],
                        cwd=tmp_path / 'out', capture_output=True, text=True, check=False)
  assert done.returncode == 0 and 'Overfull' not in done.stdout, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize('kinds, names', [
    (('angles',), ('angles',)),
    (('entk', 'features', 'angles', 'alignment', 'theory'),
     ('kernels', 'angles', 'alignment', 'spectrum', 'theory'))], ids=['angles', 'all'])
def test_a_single_run_shows_its_curves_and_pictures(tmp_path, leave, kinds, names):
  """And is the same each time."""
  run = leave(tmp_path / 'one', probes=kinds)
  made = program.make([run], None)
  assert {name for name in made if name.endswith('.png')} == {
      f'figures/mlp-on-digits-{name}.png' for name in ('curves', *names)}
  assert made == program.make([run], None)
  assert '**mlp on digits: representations**' in made['report.md'].decode()


@pytest.mark.slow
def test_figures_of_columns_that_are_named_alike_are_files_of_their_own(tmp_path, leave):
  for column in ('a_b', 'a-b'):
    for seed in (0, 1):
      leave(tmp_path / column / str(seed), seed=seed, validation=None)
  made = program.make([tmp_path], None)
  names = [name for name in made if 'train-loss' in name]
  assert sorted(names) == [f'figures/a-b-train-loss{more}.{kind}' for more in ('-2', '')
                           for kind in ('pdf', 'png')]
  assert set(re.findall(r'\((figures/.*loss.*)\)', made['report.md'].decode())) == {
      'figures/a-b-train-loss.png', 'figures/a-b-train-loss-2.png'}


def test_texts_and_runs_without_results(tmp_path, leave):
  """Entropies are said; nothing is drawn of what has not begun to be."""
  for seed in (0, 1):
    leave(tmp_path / f'{seed}', seed=seed, test=None, epochs=1, dataset='characters',
          validation=None)
  made = program.make([tmp_path], None)
  text = made['report.md'].decode()
  assert re.search(r'unigram entropy of the training text: 3\.0\d+ nats per character', text)
  assert _cells(text, 'mlp on characters: test accuracy (%)')[1][1:] == ['–', '0, 2 unfinished']
  assert not any(name.endswith('.png') for name in made)


@pytest.mark.slow
def test_every_run_has_a_line(tmp_path, leave):
  """Finished, unfinished, and not begun; R^2 where there is one."""
  leave(tmp_path / 'done', test=0.25, fit=True)
  leave(tmp_path / 'going', test=None, epochs=5, seed=1)
  leave(tmp_path / 'new', test=None, epochs=1, seed=2)
  rows = _cells(program.make([tmp_path], None)['report.md'].decode(),
                'Every run, after its last epoch')
  assert rows[0] == ['run', 'state', 'epochs', 'train loss', 'validation loss', 'test loss',
                     'test accuracy', 'test r2']
  assert [row[1:] for row in rows[1:]] == [
      ['finished', '2', '2.0000', '1.0000', '0.7500', '–', '0.2500'],
      ['unfinished', '4', '1.0000', '0.5000', '–', '–', '–'],
      ['unfinished', '0', '–', '–', '–', '–', '–']]


def test_the_metric_that_is_asked_for_must_be_there(tmp_path, leave):
  leave(tmp_path / 'one', fit=True)
  with pytest.raises(WorkdirError, match='has no test_accuracy.*numbers.*--metric=test_r2'):
    program.make([tmp_path], 'test_accuracy')


@pytest.mark.slow
def test_the_program(tmp_path, leave, monkeypatch, capsys):
  """Below the runs, or in a folder; again over its own; a mistake is one paragraph."""
  monkeypatch.setattr(sys, 'argv', ['report'])
  ask = lambda **values: monkeypatch.setattr(program.flags, 'FLAGS', types.SimpleNamespace(
      **{'out': None, 'metric': None, **values}))
  ask()
  runs = tmp_path / 'runs'
  leave(runs / 'one')
  program.main(['report', str(runs)])
  assert capsys.readouterr().out.startswith(f'{runs / "report" / "report.html"}, and report.md')
  program.main(['report', str(runs)])
  ask(out=str(tmp_path / 'out'), metric='test_error')
  program.main(['report', str(runs), str(runs / 'one')])
  assert 'test error (%)' in (tmp_path / 'out' / 'report.md').read_text()
  (tmp_path / 'out' / 'report.md').write_text('mine')
  for argv, words in ((['report'], 'no runs'), (['report', str(runs)], 'was changed since'),
                      (['report', str(tmp_path / 'no')], 'there is no directory')):
    with pytest.raises(SystemExit, match=words):
      program.main(argv)
  assert (tmp_path / 'out' / 'report.md').read_text() == 'mine'
