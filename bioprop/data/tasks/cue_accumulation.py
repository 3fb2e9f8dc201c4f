"""Cue accumulation: of seven cues, were more on the left or on the right? (Bellec et al. 2020)

The evidence accumulation of e-prop (Nature Communications 11:3625, Figure 4), as a mouse in a
corridor does it. A trial favours one side; each of seven cues is on that side with probability 0.7.
After a delay, a recall cue asks on which side there were more. A step is 50 ms:

  3 steps for each cue: one silent, two of the cue    delay of 10 to 30    3 steps: recall

The input is the number of spikes of four groups of ten neurons in each step, over 20, the mean
number of an active group: left, right and recall fire at 40 Hz during their cues and else not at
all, the last at 10 Hz all the time. (The paper gives networks of spiking neurons the single spikes
of each ms; the delay is that of its text, 0.5 to 1.5 s.) Labels (0: left, 1: right) are those of
the recall; all other steps have -1 and do not count.
"""
import numpy as np

from bioprop.data.split import Source, Split

CUES, FAVOURED, PERIOD, SHORTEST, LONGEST, RECALL = 7, 0.7, 3, 10, 30, 3
ACTIVE, BACKGROUND = 20.0, 5.0  # Spikes of ten neurons in 50 ms at 40 Hz and at 10 Hz.
STEPS = CUES * PERIOD + LONGEST + RECALL
_TRAIN, _TEST = 2000, 500


def read(seed: int = 0) -> Source:
  """Makes `cue_accumulation`: with one seed, always the same trials.

  Args:
    seed: of all that is drawn, 0 <= seed < 2**32.

  Returns:
    2000 trials to train on and 500 to test on: x float32 [n, 54, 4], labels int32 [n, 54].
  """
  random = np.random.RandomState(seed)
  n = _TRAIN + _TEST
  favoured = random.randint(2, size=(n, 1))
  sides = np.where(random.rand(n, CUES) < FAVOURED, favoured, 1 - favoured)
  recall = CUES * PERIOD + random.randint(SHORTEST, LONGEST + 1, size=n)  # Its first step.
  rows, mean = np.arange(n), np.zeros((n, STEPS, 4))
  mean[..., 3] = BACKGROUND
  for cue in range(CUES):
    for step in range(cue * PERIOD + 1, (cue + 1) * PERIOD):
      mean[rows, step, sides[:, cue]] = ACTIVE
  labels = np.full((n, STEPS), -1, np.int32)
  for step in range(RECALL):
    mean[rows, recall + step, 2] = ACTIVE
    labels[rows, recall + step] = sides.sum(1) > CUES / 2
  x = (random.poisson(mean) / ACTIVE).astype(np.float32)
  return Source(2, Split(x[:_TRAIN], labels[:_TRAIN]), Split(x[_TRAIN:], labels[_TRAIN:]))
