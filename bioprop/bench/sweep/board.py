"""What of a sweep is shown while it runs."""
import datetime
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import logging
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bioprop.bench.sweep.plan import Run
from bioprop.bench.sweep.table import is_done
from bioprop.errors import WorkdirError
from bioprop.training import metrics
from bioprop.training.loop import Progress

_REFRESHES = 2  # Of a terminal, in a second.


class Board(Progress):
  """Nothing but a line for each run that has ended, for logs; `LiveBoard` is for terminals."""

  def __init__(self, runs: Sequence[Run]):
    self._runs, self._taken = list(runs), []

  def take(self, runs: Sequence[Run]) -> None:
    """This process trains these runs from now on."""
    self._taken = list(runs)
    print(f'training {", ".join(one.title for one in runs)}', flush=True)

  def done(self, one: Run) -> None:
    """A run has ended."""

  def waits(self) -> None:
    """All that is left is held by other processes."""


class LiveBoard(Board):
  """A table that is redrawn: what is done, what runs, and how long the rest may take."""

  def __init__(self, runs: Sequence[Run]):
    super().__init__(runs)
    self._done = {one.path for one in runs if is_done(one)}
    self._took: dict[pathlib.Path, float] = {}  # Seconds of runs that are done.
    self._line = 'starting'
    self._now = self._total = self._together = 0
    # The last: it draws at once.
    self._live = Live(console=Console(), refresh_per_second=_REFRESHES,
                      get_renderable=self._table, transient=True)

  def __enter__(self) -> 'LiveBoard':
    self._live.__enter__()
    # What is logged goes above the table too, by rich's own stream.
    self._stderr = logging.get_absl_handler().python_handler.setStream(sys.stderr)
    return self

  def __exit__(self, *exception) -> None:
    logging.get_absl_handler().python_handler.setStream(self._stderr or sys.stderr)
    self._live.__exit__(*exception)

  def take(self, runs: Sequence[Run]) -> None:
    """See `Board`; so for the other methods."""
    self._taken, self._line = list(runs), 'compiling'

  def done(self, one: Run) -> None:
    """See `Board`."""
    self._done.add(one.path)
    self._taken = [other for other in self._taken if other.path != one.path]

  def waits(self) -> None:
    """See `Board`."""
    self._done.update(one.path for one in self._runs if is_done(one))
    self._line = 'what is left is trained by other processes'

  def begin(self, runs: int, done: int, total: int) -> None:
    """See `Progress`."""
    self._now, self._total, self._together = done, total, runs
    self._began = time.monotonic(), done

  def steps(self, count: int) -> None:
    """See `Progress`."""
    self._now += count
    if count:
      began, done = self._began
      speed = (self._now - done) / max(time.monotonic() - began, 1e-9) * self._together
      self._line = f'step {self._now} of {self._total}, {speed:,.0f} steps/s of all runs'

  def _table(self) -> Group:
    places = list(dict.fromkeys(one.place for one in self._runs))
    rules = list(dict.fromkeys(one.rule for one in self._runs))
    table = Table()
    table.add_column('rule')
    for place in places:
      table.add_column(place, justify='right')
    running = {one.path for one in self._taken}
    for rule in rules:
      cells = []
      for place in places:
        own = [one for one in self._runs if (one.place, one.rule) == (place, rule)]
        done, now = (sum(one.path in paths for one in own) for paths in (self._done, running))
        cells.append(f'{done}/{len(own)}' + (f' ({now} running)' if now else ''))
      table.add_row(rule, *cells)
    return Group(table, Text(self._caption()))  # As wide as the terminal, not as the table.

  def _caption(self) -> str:
    left = self._left()
    eta = 'unknown yet' if left is None else str(datetime.timedelta(seconds=round(left)))
    return '; '.join(filter(None, [self._line, f'left, for this process alone: {eta}']))

  def _left(self) -> float | None:
    """Seconds that the rest takes, judged by runs like them that have ended."""
    like: dict[tuple[str, str], list[float]] = {}
    for one in self._runs:
      if one.path in self._done and one.path not in self._took:  # Once: this is asked often.
        self._took[one.path] = _seconds(one)
      if took := self._took.get(one.path):
        like.setdefault((one.place, one.rule), []).append(took)
    known = [took for all_of_it in like.values() for took in all_of_it]
    left = [one for one in self._runs if one.path not in self._done]
    if left and not known:
      if not self._now:
        return None
      began, done = self._began
      spent = time.monotonic() - began
      known = [spent / max(self._now - done, 1) * self._total / max(self._together, 1)]
    return float(sum(np.mean(like.get((one.place, one.rule), known)) for one in left))


def _seconds(one) -> float:
  """What a run took; 0 of one that diverged at once, or whose record cannot be read."""
  try:
    return sum(record.get('seconds', 0.0) for record in metrics.read(one.path))
  except WorkdirError:  # The table says so in the end.
    return 0.0
