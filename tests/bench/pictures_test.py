"""Pictures of what probes found: which there are, and that they show what the files hold."""
import json
import pathlib

import numpy as np
import pytest
from matplotlib.text import Text

from bioprop.bench import pictures
from bioprop.errors import WorkdirError
from bioprop.training import base, probing, workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.RandomState(0)
LABELS = np.array([0, 0, 0, 4, 4, 7])
LAYERS = ('Dense_0', 'Dense_1')
STEPS = (0, 2, 4, 5, 10, 12)


def _found(kind):
  """What a type gives of two layers, of which the first has a bias."""
  number, kernel = lambda: np.asarray(RNG.rand()), lambda: RNG.randn(6, 6)
  weights = [f'{layer}/kernel' for layer in LAYERS]
  parameters = [*weights, 'Dense_0/bias']
  if kind == 'entk':
    return {'kernel': kernel(), 'target_alignment': number(), 'effective_rank': number(),
            **{f'share/{path}': number() for path in parameters}}
  if kind == 'features':
    return {f'{name}/{path}': make() for path in weights for name, make in (
        ('phi', kernel), ('g', kernel), ('g_pseudo', kernel), ('target_alignment', number),
        ('effective_rank', number))}
  if kind == 'angles':
    names = [*(f'signals/{path}' for path in weights), 'cosine', 'ratio', *(
        f'{name}/{path}' for name in ('cosine', 'ratio') for path in parameters)]
    return {**{name: number() for name in names}, 'samples': RNG.randn(6)}
  if kind == 'theory':
    return {f'{prefix}{name}': make() for prefix in ('', 'infinite_') for name, make in (
        ('kernel', kernel), ('target_alignment', number), ('loss', number))} | {
            'distance': number()}
  return {'cosine/Dense_1/kernel': number(), 'direct/Dense_1': number()}


def _run(path, kinds, labels=LABELS, steps=STEPS):
  """The directory of a run as training leaves it, and what its probes found."""
  config = base()
  for kind in kinds:
    config.probes[f'my_{kind}'] = {'type': kind, 'every': 5, 'batch': len(labels)}
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(workdir.as_json(config)))
  found = {kind: {step: _found(kind) for step in steps} for kind in kinds}
  for kind, moments in found.items():
    for step, one in moments.items():
      probing.write(path, probing.Measured(f'my_{kind}', step, labels, one))
  return found


@pytest.fixture
def figures(monkeypatch):
  """All figures that are drawn, by the name of their file."""
  drawn = {}

  class Seen(pictures.Figure):

    def savefig(self, file, **kwargs):
      drawn[pathlib.Path(file.name).stem] = self  # Beside the name that it is given when whole.
      super().savefig(file, **kwargs)

  monkeypatch.setattr(pictures, 'Figure', Seen)
  return drawn


def test_theory_beside_the_network(tmp_path, figures):
  """Kernels with infinite width's first; lines of both, of what there is."""
  found = _run(tmp_path / 'run', ('theory',))['theory']
  (file,) = pictures.draw(tmp_path / 'run', tmp_path)
  assert file == tmp_path / 'theory.png'
  above, below = figures['theory.png'].subfigs
  want = [found[0]['infinite_kernel'], *(found[step]['kernel'] for step in (0, 5, 12))]
  for axes, kernel in zip(above.axes, want, strict=True):
    np.testing.assert_array_equal(axes.images[0].get_array(), kernel)
  for axes, name in zip(below.axes, ('target_alignment', 'loss', 'distance'), strict=True):
    pairs = [('network', name), ('infinite width', f'infinite_{name}')][:2 - (name == 'distance')]
    assert _lines(axes) == {label: ([*STEPS], [float(found[step][key]) for step in STEPS])
                            for label, key in pairs}


def _lines(axes):
  return {line.get_label(): (list(line.get_xdata()), [float(y) for y in line.get_ydata()])
          for line in axes.lines}


def test_a_title_is_not_cut(tmp_path, figures):
  """One kernel is narrow, and the names of sweeps' runs are long."""
  name = 'dfa-normalise-norms-learning_rate=0.0316-seed11'
  _run(tmp_path / name, ('entk',))
  pictures.draw(tmp_path / name, tmp_path)
  figure = figures['kernels.png']
  figure.draw_without_rendering()
  title, = figure.findobj(lambda artist: isinstance(artist, Text) and 'digits' in artist.get_text())
  box = title.get_window_extent()
  assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and 0 <= box.y0 < box.y1 <= figure.bbox.y1
  assert title.get_text().replace('\n', '').replace(' ', '') == f'{name}:mlpondigits,fa'


def test_all_pictures(tmp_path, figures):
  """In the order of the list, into the folder."""
  found = _run(tmp_path / 'run', ('entk', 'features', 'angles', 'alignment'))
  (tmp_path / 'out').mkdir()
  files = pictures.draw(tmp_path / 'run', tmp_path / 'out')
  names = ['kernels.png', 'angles.png', 'alignment.png', 'spectrum.png']
  assert files == [tmp_path / 'out' / name for name in names]
  assert all(file.read_bytes().startswith(b'\x89PNG') for file in files)
  assert all(figure.get_suptitle() == 'run: mlp on digits, fa' for figure in figures.values())
  _check_kernels(figures['kernels.png'], found)
  _check_lines(figures['angles.png'], [found['angles']] * 3 + [found['alignment']] * 2, [
      ('cosine', {'cosine': 'network'}), ('signals', {}), ('ratio', {'ratio': 'network'}),
      ('cosine', {}), ('direct', {})])
  _check_lines(figures['alignment.png'], [found['entk'], found['features']] * 2, [
      ('target_alignment', {'target_alignment': 'network'}), ('target_alignment', {}),
      ('share', {}), ('effective_rank', {})])
  (axes,) = figures['spectrum.png'].axes
  lines = _lines(axes)
  assert list(lines) == ['step 0', 'step 5', 'step 12']  # 5 is nearer to the middle than 10 or 4.
  for step in (0, 5, 12):
    x, y = lines[f'step {step}']
    assert x == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(
        y, np.linalg.svd(found['entk'][step]['kernel'], compute_uv=False), rtol=1e-4)


def _check_kernels(figure, found):
  """A row for the start, the middle and the end; ticks in the middle of each class."""
  rows = np.array(figure.axes).reshape(3, 3)
  for row, step in zip(rows, (0, 5, 12)):
    assert [axes.get_title() for axes in row] == [
        f'{name}, step {step}' for name in ('eNTK', 'Phi Dense_0', 'Phi Dense_1')]
    want = [found['entk'][step]['kernel'], *(
        found['features'][step][f'phi/{layer}/kernel'] for layer in LAYERS)]
    for axes, kernel in zip(row, want):
      np.testing.assert_array_equal(axes.images[0].get_array(), kernel)
      assert axes.images[0].get_clim() == (-np.abs(kernel).max(), np.abs(kernel).max())
      for ticks, labels in ((axes.get_xticks(), axes.get_xticklabels()),
                            (axes.get_yticks(), axes.get_yticklabels())):
        assert list(ticks) == [1, 3.5, 5] and [tick.get_text() for tick in labels] == [
            '0', '4', '7']


def _check_lines(figure, sources, panels):
  """A line for each layer by step, biases left out, and one for the network."""
  assert len(figure.axes) == len(panels)
  for axes, source, (name, own) in zip(figure.axes, sources, panels):
    keys = [key for key in source[0] if key.split('/')[0] == name and 'bias' not in key]
    assert keys
    assert _lines(axes) == {
        own.get(key) or key.split('/')[1]: (
            list(STEPS), [float(one[key]) for one in source.values()]) for key in keys}
    assert axes.get_legend() is not None


@pytest.mark.parametrize('kind, names', [
    ('entk', ['kernels', 'alignment', 'spectrum']), ('features', ['kernels', 'alignment']),
    ('angles', ['angles']), ('alignment', ['angles'])])
def test_one_probe_gives_its_own(tmp_path, kind, names):
  """After one measurement too."""
  _run(tmp_path / 'run', (kind,), steps=(0,))
  files = pictures.draw(tmp_path / 'run', tmp_path / 'run')
  assert [file.name for file in files] == [f'{name}.png' for name in names]
  assert {file.name for file in (tmp_path / 'run').glob('*.png')} == {file.name for file in files}


@pytest.mark.slow
def test_probes_that_measured_at_other_steps_are_drawn_at_the_nearest(tmp_path, figures):
  """A row is one moment, or as near to it as there is."""
  _run(tmp_path / 'run', ('entk', 'features'))
  for step in (4, 5, 10):
    (tmp_path / 'run' / 'probes' / 'my_features' / f'{step:08d}.npz').unlink()
  pictures.draw(tmp_path / 'run', tmp_path)
  titles = [axes.get_title() for axes in figures['kernels.png'].axes]
  assert titles[::3] == ['eNTK, step 0', 'eNTK, step 5', 'eNTK, step 12']
  assert titles[1::3] == ['Phi Dense_0, step 0', 'Phi Dense_0, step 2', 'Phi Dense_0, step 12']


@pytest.mark.parametrize('labels', [np.zeros((6, 3), int), np.linspace(0, 1, 6)],
                         ids=['texts', 'quantities'])
def test_labels_that_are_no_classes_are_not_marked(tmp_path, figures, labels):
  """The kernels are drawn without ticks; there is no alignment with targets."""
  found = _run(tmp_path / 'run', ('entk',), labels)['entk']
  for step, one in found.items():
    del one['target_alignment']
    probing.write(tmp_path / 'run', probing.Measured('my_entk', step, labels, one))
  files = pictures.draw(tmp_path / 'run', tmp_path)
  assert [file.name for file in files] == ['kernels.png', 'alignment.png', 'spectrum.png']
  assert not any(list(axes.get_xticks()) + list(axes.get_yticks())
                 for axes in figures['kernels.png'].axes)
  assert len(figures['alignment.png'].axes) == 1


def test_kernels_of_nothing_are_drawn(tmp_path, figures):
  """As of a readout that starts at 0, or outputs that do not move."""
  _run(tmp_path / 'run', ('entk',), steps=(0, 1))
  nothing = {**_found('entk'), 'kernel': np.zeros((6, 6))}
  probing.write(tmp_path / 'run', probing.Measured('my_entk', 0, LABELS, nothing))
  assert len(pictures.draw(tmp_path / 'run', tmp_path)) == 3
  assert figures['kernels.png'].axes[0].images[0].get_clim() == (-1, 1)


def test_what_cannot_be_drawn(tmp_path):
  """No run there; probes that have measured nothing yet. A run without probes gives nothing."""
  with pytest.raises(WorkdirError, match='holds no run.*--workdir'):
    pictures.draw(tmp_path, tmp_path)
  _run(tmp_path / 'new', ('entk',), steps=())
  with pytest.raises(WorkdirError, match="no measurements of a probe 'my_entk'; it has none"):
    pictures.draw(tmp_path / 'new', tmp_path)
  _run(tmp_path / 'bare', ())
  assert pictures.draw(tmp_path / 'bare', tmp_path) == []
  (tmp_path / 'old').mkdir()
  (tmp_path / 'old' / 'config.json').write_text('{"seed": 0, "model": "mlp", "dataset": "digits", '
                                                '"rule": "fa"}')  # Before there were probes.
  assert pictures.draw(tmp_path / 'old', tmp_path) == []
  assert not list(tmp_path.glob('*.png'))


CONFIG = '''
from bioprop.training import base


def get_config():
  config = base()
  config.model_options.hidden = (4,)
  config.update(rule='bp', validation=0, epochs=1, batch_size=700)
  for name in ('entk', 'features', 'angles', 'alignment'):
    config.probes[name] = {'type': name, 'every': 1, 'batch': 10}
  return config
'''


@pytest.mark.slow
def test_train_draws_them(python, tmp_path):
  """Beside the curves; and the program draws the same again."""
  (tmp_path / 'small.py').write_text(CONFIG)
  run = tmp_path / 'run'
  done = python(ROOT / 'train.py', f'--config={tmp_path / "small.py"}', f'--workdir={run}',
                cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  names = {'kernels.png', 'angles.png', 'alignment.png', 'spectrum.png'}
  assert {file.name for file in run.glob('*.png')} == {'curves.png', *names}
  files = pictures.draw(run, tmp_path)
  assert {file.name for file in files} == names
  for file in files:
    assert file.read_bytes() == (run / file.name).read_bytes()
