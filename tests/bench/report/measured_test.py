"""What probes found, rules beside each other: that figures show what the files hold."""
import numpy as np

from bioprop.bench import style
from bioprop.bench.report import cells, kernels, measured, runs
from bioprop.bench.report.metric import metric_of
from bioprop.training import probing

KINDS = ('entk', 'features', 'angles', 'alignment', 'theory')
STEPS = [0, 5, 10]


def _measured(folder):
  found = runs.find([folder]).runs
  rows = cells.cells(found, metric_of(found, None))
  return measured.measure(rows), style.looks(row.rule for row in rows)


def _drawn(axes):
  return {line.get_label(): (list(line.get_xdata()), np.asarray(line.get_ydata(), float))
          for line in axes.lines}


def test_means_over_seeds_by_rule(tmp_path, leave):
  """Of every probe that there is: numbers of the network, and means over layers."""
  for rule in ('bp', 'fa'):
    for seed in (0, 2):
      leave(tmp_path / f'{rule}{seed}', rule, seed, probes=KINDS)
  own, looks = _measured(tmp_path)
  pictures = {one.name: one for one in measured.pictures(own, looks, 'here')}
  assert list(pictures) == [
      'angle', 'signals', 'feedback', 'entk-alignment', 'phi-alignment', 'rank', 'distance',
      'theory-loss', 'theory-target_alignment', 'share', 'angle-layers', 'feedback-layers']
  rises = np.array([0, 0.05, 0.1]) + 0.1  # In steps; and the mean of seeds 0 and 2.
  for name, place in (('angle', 3), ('signals', 0.5), ('feedback', 0.5), ('entk-alignment', 1),
                      ('phi-alignment', 2), ('rank', 9), ('distance', 5)):
    lines = _drawn(pictures[name].figure.axes[0])
    assert lines.keys() == {'bp', 'fa'}
    for x, y in lines.values():
      assert x == STEPS
      np.testing.assert_allclose(y, 0.2 * place + rises)
  ours, limit = pictures['theory-loss'].figure.axes[0].lines[0::2]
  np.testing.assert_allclose(ours.get_ydata(), 0.6 + rises)
  np.testing.assert_allclose(limit.get_ydata(), 0.8 + rises)
  assert all('here' in one.title and 'bp 0.' in one.text for name, one in pictures.items()
             if name not in ('rank', 'distance'))


def test_what_was_measured_afterwards_is_shown_too(tmp_path, leave):
  """As bioprop probe leaves it; what the run's own probes found of the same type comes first."""
  leave(tmp_path / 'run', probes=('entk',))
  labels = np.arange(3)
  for kind, rank in (('features', 7.0), ('entk', 9.0)):
    probing.note(tmp_path / 'run', f'later_{kind}', {'type': kind, 'batch': 3})
    probing.write(tmp_path / 'run', probing.Measured(
        f'later_{kind}', 0, labels, {'effective_rank': np.asarray(rank)}))
  (run,) = runs.find([tmp_path / 'run']).runs
  found = measured.read(run)
  assert sorted(found) == ['entk', 'features']
  assert [float(one['effective_rank']) for one in found['features']] == [7.0]
  assert [int(one['step']) for one in found['entk']] == STEPS


def test_layers_at_the_start_and_at_the_end(tmp_path, leave):
  """The bias of a layer is part of its share, and has no angle that is shown."""
  leave(tmp_path / 'fa', 'fa', 0, probes=KINDS)
  own, looks = _measured(tmp_path)
  pictures = {one.name: one for one in measured.pictures(own, looks, 'x')}
  for name, first, names in (('share', [0.1, 0.2, 0.4], ['Dense_0', 'Dense_1', 'Dense_2']),
                             ('angle-layers', [0, 0.2, 0.4], ['Dense_0', 'Dense_1', 'Dense_2']),
                             ('feedback-layers', [0, 0.2], ['Dense_0', 'Dense_1'])):
    axes = pictures[name].figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    start, end = [line for line in axes.lines if len(line.get_xdata()) == len(names)][:2]
    np.testing.assert_allclose(start.get_ydata(), first)
    rise = np.full(len(names), 0.1)
    rise[0] += 0.1 * (name == 'share')  # Of the kernel and of the bias.
    np.testing.assert_allclose(end.get_ydata(), first + rise)
    assert start.get_alpha() < 1


def test_many_layers_are_numbered(tmp_path, leave):
  leave(tmp_path / 'fa', 'fa', 0, probes=('entk',))
  many = {f'share/conv_{at}/kernel': np.asarray(1.0 * at) for at in range(15)}
  for step in STEPS:
    probing.write(tmp_path / 'fa', probing.Measured('my_entk', step, np.arange(6), {
        'kernel': np.eye(6), 'effective_rank': np.asarray(6.0), **many}))
  own, looks = _measured(tmp_path)
  (share,) = [one for one in measured.pictures(own, looks, 'x') if one.name == 'share']
  axes = share.figure.axes[0]
  assert axes.get_xlabel() == 'layer, of 15'
  np.testing.assert_array_equal(axes.lines[0].get_ydata(), np.arange(15))  # conv_10 after conv_9.


def test_only_what_there_is(tmp_path, leave):
  """One rule has a probe and the other not; a probe that has not measured yet."""
  leave(tmp_path / 'a', 'bp', 0, probes=('angles',))
  waiting = leave(tmp_path / 'b', 'fa', 0, None, probes=('angles',))
  for file in (waiting / 'probes').rglob('*.npz'):
    file.unlink()
  own, looks = _measured(tmp_path)
  names = [one.name for one in measured.pictures(own, looks, 'x')]
  assert names == ['angle', 'signals', 'angle-layers'] and not list(kernels.pictures(own, 'x'))


def test_kernels_by_rule(tmp_path, leave):
  """The first seed's, at the start and the end, on one scale; the layer that is last."""
  for rule, seed in (('bp', 1), ('bp', 0), ('fa', 3)):
    leave(tmp_path / f'{rule}{seed}', rule, seed, probes=('entk', 'features'))
  own, _ = _measured(tmp_path)
  for picture, kind, key in zip(kernels.pictures(own, 'x'), ('entk', 'features'),
                                ('kernel', 'phi/Dense_2/kernel'), strict=True):
    grid = picture.figure.axes[:4]
    assert [axes.get_title() for axes in grid] == [
        'bp, step 0', 'bp, step 10', 'fa, step 0', 'fa, step 10']
    for axes, (run, step) in zip(grid, (('bp0', 0), ('bp0', 10), ('fa3', 0), ('fa3', 10))):
      kernel = np.load(tmp_path / run / 'probes' / f'my_{kind}' / f'{step:08d}.npz')[key]
      np.testing.assert_allclose(axes.images[0].get_array(), kernel / np.abs(kernel).max())
      assert list(axes.get_xticks()) == [0.5, 2.5, 4.5]
    assert len({axes.images[0].get_clim() for axes in grid}) == 1


def test_kernels_of_nothing_and_of_what_is_no_number(tmp_path, leave):
  """Are drawn as what is there."""
  leave(tmp_path / 'fa', 'fa', 0, probes=('entk',))
  broken = np.eye(6)
  broken[0, 1] = np.inf
  for step, kernel in ((0, np.zeros((6, 6))), (10, -2 * broken)):
    probing.write(tmp_path / 'fa', probing.Measured('my_entk', step, np.arange(6), {
        'kernel': kernel, 'effective_rank': np.asarray(6.0)}))
  own, _ = _measured(tmp_path)
  (picture,) = kernels.pictures(own, 'x')
  first, last = (axes.images[0] for axes in picture.figure.axes[:2])
  assert not np.any(first.get_array()) and last.get_clim() == (-1, 1)
  np.testing.assert_array_equal(np.ma.filled(last.get_array(), 7)[0, :3], [-1, 7, 0])
