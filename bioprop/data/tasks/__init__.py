"""Tasks of recurrent networks, made from a seed: `TASKS[name](seed)` gives train and test.

  name              inputs    outputs    what counts
  copy              [20, 9]   8 classes  the last 5 steps
  cue_accumulation  [54, 4]   2 classes  the recall, 3 steps
  delayed_match     [30, 4]   2 classes  the response, 5 steps
  flip_flop         [50, 3]   3 numbers  every step
  linear_teacher    [20, 4]   2 numbers  every step
  sine              [100, 1]  1 number   every step
"""
from collections.abc import Callable

from bioprop.data.split import Source
from bioprop.data.tasks import (
    copy,
    cue_accumulation,
    delayed_match,
    flip_flop,
    linear_teacher,
    sine,
)

TASKS: dict[str, Callable[..., Source]] = {
    'copy': copy.read,
    'cue_accumulation': cue_accumulation.read,
    'delayed_match': delayed_match.read,
    'flip_flop': flip_flop.read,
    'linear_teacher': linear_teacher.read,
    'sine': sine.read,
}

__all__ = ['TASKS']
