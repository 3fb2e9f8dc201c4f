"""A dataset that is not prepared: an error that says what to type, in seconds, without network."""
import importlib.util
import pathlib
import socket
import subprocess
import sys
import time
import types

import pytest
import tensorflow_datasets as tfds

from bioprop import data, errors
from bioprop.data import prepare


@pytest.fixture
def no_tensorflow(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)


@pytest.fixture
def fake_tensorflow(monkeypatch):
  """Makes the packages of the extra look installed."""
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec',
                      lambda name: 'there' if name in prepare._PACKAGES else real(name))


def message_of(name, data_dir, **kwargs):
  start = time.perf_counter()
  with pytest.raises(errors.DataError) as info:
    data.load(name, str(data_dir), **kwargs)
  assert time.perf_counter() - start < 5
  assert '\n' not in str(info.value)
  return str(info.value)


@pytest.mark.usefixtures('no_tensorflow')
@pytest.mark.parametrize('name', ['kmnist', 'fashion_mnist', 'cifar100', 'emnist/balanced'])
def test_not_prepared_and_no_tensorflow(name, tmp_path):
  message = message_of(name, tmp_path)
  assert f'{tmp_path} holds no {name}/<version>/dataset_info.json' in message
  assert "pip install 'bioprop[prepare]'" in message and '--data_dir=' in message
  assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures('no_tensorflow')
def test_no_data_dir(tmp_path, monkeypatch):
  assert 'there is no such folder' in message_of('mnist', tmp_path / 'absent')
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(errors.DataError, match=f'{tmp_path}/tensorflow_datasets .there is no such'):
    data.load('mnist')


@pytest.mark.usefixtures('no_tensorflow')
def test_data_dir_that_is_the_dataset_itself(toy, monkeypatch):
  data_dir = pathlib.Path(toy('mnist'))
  for wrong in (data_dir / 'mnist', data_dir / 'mnist' / '1.0.0'):
    assert message_of('mnist', wrong).endswith(f'Type: --data_dir={data_dir}')
  monkeypatch.chdir(data_dir / 'mnist')
  assert message_of('mnist', '.').endswith(f'Type: --data_dir={data_dir}')


@pytest.mark.parametrize('name, close', [
    ('mnits', "'mnist'"), ('MNIST', "'mnist'"), ('digit', "'digits'"), ('cifar-10', "'cifar10'")])
def test_unknown_name(name, close, tmp_path):
  message = message_of(name, tmp_path)
  assert message.startswith(f'There is no dataset {name!r}')
  assert close in message and 'list_builders' in message


@pytest.mark.parametrize('name', ['', '..', '../mnist', 'no/such/name', 'qqqqqqqq', 'mnist/..'])
def test_name_that_is_like_no_other(name, tmp_path):
  assert message_of(name, tmp_path / 'data').startswith(f'There is no dataset {name!r}')


def test_the_line_that_lists_names_works(tmp_path):
  message = message_of('qqqqqqqq', tmp_path)
  command = message[message.index('python -c'):].replace('python', sys.executable, 1)
  listed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
  assert {'mnist', 'cifar10', 'kmnist', 'cifar100'} <= set(listed.split())


def test_without_tensorflow_no_network_is_tried(tmp_path, monkeypatch, no_tensorflow):
  for name in ('socket', 'create_connection', 'getaddrinfo'):
    monkeypatch.setattr(socket, name, None)  # A call is a TypeError.
  message_of('kmnist', tmp_path)


@pytest.mark.usefixtures('fake_tensorflow')
def test_silent_server_is_given_up_in_seconds(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, '_ANSWER_SECONDS', 1)
  with socket.create_server(('127.0.0.1', 0)) as silent:
    host = f'http://127.0.0.1:{silent.getsockname()[1]}/'
    started = fake_builder(monkeypatch, tmp_path, [host + 'a.gz', host + 'b.gz'])
    message = message_of('kmnist', tmp_path)
  assert f'cannot be downloaded: {host} gave no answer' in message
  assert not started


@pytest.mark.usefixtures('fake_tensorflow')
def test_server_that_answers_lets_tfds_begin(tmp_path, monkeypatch):
  import http.server
  import threading

  handler = type('Quiet', (http.server.SimpleHTTPRequestHandler,), {
      'log_message': lambda *args: None, 'do_GET': lambda self: self.send_error(404)})
  with http.server.HTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/x.gz'
    # A second server that refuses does not matter: one of two may be a mirror.
    started = fake_builder(monkeypatch, tmp_path, [url, 'http://127.0.0.1:9/'])
    message = message_of('kmnist', tmp_path)
    server.shutdown()
  assert started == [False]
  assert "could not prepare 'kmnist'" in message and 'RuntimeError: first line. If' in message


def fake_builder(monkeypatch, data_dir, urls):
  """Replaces tfds.builder; returns the list of try_download_gcs of each preparing."""
  started = []

  def download_and_prepare(download_config):
    started.append(download_config.try_download_gcs)
    raise RuntimeError('first line.\nsecond line')

  def builder(name, data_dir, file_format):
    assert file_format == 'array_record'
    return types.SimpleNamespace(url_infos=dict.fromkeys(urls), data_dir=data_dir,
                                 download_and_prepare=download_and_prepare)

  monkeypatch.setattr(tfds, 'builder', builder)
  return started


@pytest.mark.usefixtures('fake_tensorflow')
def test_prepared_files_are_read_at_once(toy, tmp_path, monkeypatch):
  data_dir = pathlib.Path(toy('kmnist'))
  empty = tmp_path / 'elsewhere'

  def builder(name, data_dir, file_format):
    return types.SimpleNamespace(
        url_infos=None, data_dir=str(empty / 'kmnist' / '1.0.0'),
        download_and_prepare=lambda download_config: ready.rename(empty))

  ready = data_dir
  monkeypatch.setattr(tfds, 'builder', builder)
  assert data.load('kmnist', str(empty), validation=0).train.labels.tolist() == [0, 1, 2, 0, 1]
