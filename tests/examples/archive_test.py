"""The download: what is there, and what happens where there is no network."""
import os

import pytest


def test_the_archive_has_the_examples(examples_folder):
  names = {path.name for path in examples_folder.iterdir()}
  assert {'imagenet', 'lm1b', 'mnist', 'seq2seq', 'sst2', 'vae', 'wmt'} <= names


def test_without_a_network(tools, tmp_path, monkeypatch):
  """A reason to skip, in one line, and nothing half done in the cache."""
  for name in [name for name in os.environ if name.startswith('PIP_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('BIOPROP_CACHE', str(tmp_path))
  with pytest.raises(tools.archive.Unavailable, match='pip cannot download .* flax') as caught:
    tools.archive.examples()
  assert '\n' not in str(caught.value)
  assert not [path for path in tmp_path.iterdir() if path.suffix != '.lock']
