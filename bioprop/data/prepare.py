"""Downloads and prepares a dataset with TFDS, or says at once why that cannot work here.

Left alone, TFDS retries an unreachable server for minutes, and reports a missing package for what
is a missing dataset. So everything that can be known before a download is checked before it.
"""
import difflib
import importlib.util
import pathlib
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable

from bioprop import errors
from bioprop.data import prepared
from bioprop.data.tasks import TASKS

_NAME = re.compile(r'[A-Za-z]\w*(/\w[\w.+-]*)?')
# What the extra `prepare` installs. TFDS reads its list of downloads through the second one.
_PACKAGES = ('tensorflow', 'importlib_resources')
_ANSWER_SECONDS = 8
_EMBEDDED = ('digits', 'characters', 'add', *TASKS)


def prepare(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Downloads a dataset and writes it in array_record format.

  Args:
    name: `<dataset>` or `<dataset>/<config>`, not prepared yet.
    data_dir: where to prepare it.

  Returns:
    The folder of the prepared version.

  Raises:
    DataError: the name is unknown, the dataset is one folder up, TensorFlow is not installed, the
      download's servers do not answer within seconds, or TFDS failed.
  """
  check_known(name, data_dir)
  _check_place(name, data_dir)
  _check_packages(name, data_dir)
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    _check_servers(name, data_dir, builder.url_infos or ())
    # The public bucket of prepared datasets holds tfrecord files, which need TensorFlow to read.
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except errors.DataError:
    raise
  except Exception as err:  # TFDS, TensorFlow and each dataset's own code raise what they like.
    raise errors.DataError(
        f'TFDS {tfds.__version__} could not prepare {name!r} in {data_dir}: {_brief(err)}. '
        f'If the dataset is prepared elsewhere in array_record format, give that folder: '
        f'--data_dir=<folder that holds {name}/>') from err
  return pathlib.Path(builder.data_dir)


def check_known(name: str, data_dir: pathlib.Path) -> None:
  """Raises DataError unless TFDS has a dataset of this name; `data_dir` is for the message."""
  # Here and in `prepare`, not above: it takes a second to import.
  import tensorflow_datasets as tfds

  # Community datasets are left out: their list would be fetched from the network.
  known = tfds.list_builders(with_community_datasets=False)
  if _NAME.fullmatch(name) and name.split('/')[0] in known:
    return
  close = difflib.get_close_matches(name.lower(), [*_EMBEDDED, *known], n=3)
  meant = f'Did you mean {" or ".join(map(repr, close))}? ' if close else ''
  raise errors.DataError(
      f'There is no dataset {name!r}: it is not embedded ({", ".join(_EMBEDDED)}), not one of the '
      f'{len(known)} names that TFDS {tfds.__version__} knows, and not prepared in {data_dir}. '
      f'{meant}To list all names, type: python -c "import tensorflow_datasets as tfds; '
      f'print(*tfds.list_builders(with_community_datasets=False))"')


def _check_place(name: str, data_dir: pathlib.Path) -> None:
  """Raises DataError if data_dir is the dataset's own folder and not the one that holds it."""
  for above in data_dir.absolute().parents[:2]:
    if prepared.find(name, above):
      raise errors.DataError(
          f'The dataset {name!r} is not in {data_dir} but in {above}: data_dir is the folder that '
          f'holds {name}/, not {name}/ itself. Type: --data_dir={above}')


def _check_packages(name: str, data_dir: pathlib.Path) -> None:
  """Raises DataError unless what TFDS needs to prepare a dataset is installed."""
  missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
  if missing:
    there = '' if data_dir.is_dir() else ' (there is no such folder)'
    raise errors.DataError(
        f'The dataset {name!r} is not prepared: {data_dir}{there} holds no '
        f'{name}/<version>/dataset_info.json. Reading prepared files takes no TensorFlow, but '
        f'preparing them does, and {" and ".join(missing)} cannot be imported here. With a '
        f"network, type: pip install 'bioprop[prepare]' and run again; or, if it is prepared "
        f'elsewhere, give that folder: --data_dir=<folder that holds {name}/>')


def _check_servers(name: str, data_dir: pathlib.Path, urls: Iterable[str]) -> None:
  """Raises DataError, in seconds, if none of the servers of a download answers."""
  servers = sorted({urllib.parse.urlsplit(url)._replace(path='/', query='', fragment='').geturl()
                    for url in urls})
  answered: set[str] = set()
  # Daemon threads, because a name look-up can neither be timed out nor interrupted.
  threads = [threading.Thread(target=_ask, args=(server, answered), daemon=True)
             for server in servers]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + _ANSWER_SECONDS
  for thread in threads:
    thread.join(max(0, deadline - time.monotonic()))
  if servers and not answered:
    raise errors.DataError(
        f'The dataset {name!r} is not prepared in {data_dir} and cannot be downloaded: '
        f'{" and ".join(servers)} gave no answer (waited up to {_ANSWER_SECONDS} seconds). Run '
        f'again with a network, or, if it is prepared elsewhere in array_record format, give that '
        f'folder: --data_dir=<folder that holds {name}/>')


def _ask(server: str, answered: set[str]) -> None:
  """Adds the server to `answered` if it gives any answer at all; respects proxy settings."""
  try:
    urllib.request.urlopen(server, timeout=_ANSWER_SECONDS).close()
  except urllib.error.HTTPError as err:
    err.close()  # "Not found" or "forbidden" is an answer.
  except OSError:
    return
  answered.add(server)


def _brief(err: Exception) -> str:
  """The error's type and the first line of its message, without a full stop."""
  return f'{type(err).__name__}: {next(iter(str(err).splitlines()), "").rstrip(".")}'
