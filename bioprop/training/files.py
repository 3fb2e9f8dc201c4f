"""Files that are whole or not there, and that are written nowhere but where they are asked for."""
import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a new file beside `path`, which takes its place when all is written.

  A kill meanwhile leaves the old file. What lies under the new one's name, `path`.new, goes: a
  symbolic link there (or at `path`) is replaced, and what it points to is left as it is.

  Args:
    path: the file to write.

  Raises:
    OSError: if the disk does not take it, or a directory has either name.
  """
  path = pathlib.Path(path)
  new = path.with_name(f'{path.name}.new')
  new.unlink(missing_ok=True)
  with open(new, 'xb') as file:  # 'x' follows no link, should there be one again.
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def opened(path: str | os.PathLike, flags: int) -> int:
  """Returns a descriptor of `path`, made if it is missing, for `open(..., opener=opened)`.

  Raises:
    OSError: if it is a symbolic link: what is written there would land elsewhere.
  """
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def locked(path: str | os.PathLike, wait: bool = True) -> Iterator[None]:
  """Holds a file for this process; the system lets go of it even if the process is killed.

  Args:
    path: the file, which is made where it is missing.
    wait: whether to wait while another process holds it.

  Raises:
    BlockingIOError: if another process holds it, and nothing waits.
    OSError: if it cannot be opened, or is a symbolic link.
  """
  with open(path, 'w', opener=opened) as file:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    yield
