"""Where in the user's code an equation comes from, for messages."""
import sysconfig
from collections.abc import Sequence

from jax.extend import core

_OURS = ('/bioprop/limit/', '/bioprop/fronts/', '/bioprop/network/')


def place_of(eqns: Sequence[core.JaxprEqn]) -> str:
  """Such as "'max' in CNN/Block_0 (model.py:31)".

  Args:
    eqns: the calls that an equation stands in, from the outside, and the equation.
  """
  scopes = '/'.join(text for eqn in eqns if (text := str(eqn.source_info.name_stack)))
  line = next(filter(None, map(_line, reversed(eqns))), '')
  return f'{eqns[-1].primitive.name!r}{f" in {scopes}" if scopes else ""}{line}'


def _line(eqn: core.JaxprEqn) -> str:
  libraries = sysconfig.get_paths()['purelib'], sysconfig.get_paths()['stdlib']
  traceback = eqn.source_info.traceback
  for frame in traceback.frames if traceback is not None else ():
    name = frame.file_name
    if not name.startswith(libraries) and not any(part in name for part in _OURS) and (
        not name.startswith('<')):
      return f' ({name.rpartition("/")[2]}:{frame.line_num})'
  return ''
