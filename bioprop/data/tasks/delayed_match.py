"""Delayed match to sample: is what is shown now what was shown before the delay?

  steps   0-4: sample, one of 4    delay of 5 to 15 steps    5 steps: test    5 steps: response

Stimulus k is a one in channel k; all channels have Gaussian noise of standard deviation 0.1 at
every step. In half of the trials the test is the sample, else it is one of the other three. Labels
(0: no match, 1: match) are those of the response; all other steps have -1 and do not count. The
classical task of working memory (Miller, Erickson & Desimone 1996), as in NeuroGym's
DelayMatchSample, whose stimuli are angles.
"""
import numpy as np

from bioprop.data.split import Source, Split

STIMULI, SHOWN, SHORTEST, LONGEST, NOISE = 4, 5, 5, 15, 0.1
STEPS = 3 * SHOWN + LONGEST
_TRAIN, _TEST = 2000, 500


def read(seed: int = 0) -> Source:
  """Makes `delayed_match`: with one seed, always the same trials.

  Args:
    seed: of all that is drawn, 0 <= seed < 2**32.

  Returns:
    2000 trials to train on and 500 to test on: x float32 [n, 30, 4], labels int32 [n, 30].
  """
  random = np.random.RandomState(seed)
  n = _TRAIN + _TEST
  sample = random.randint(STIMULI, size=n)
  match = random.randint(2, size=n)
  other = (sample + random.randint(1, STIMULI, size=n)) % STIMULI
  second = SHOWN + random.randint(SHORTEST, LONGEST + 1, size=n)  # The test's first step.
  x = NOISE * random.randn(n, STEPS, STIMULI)
  labels = np.full((n, STEPS), -1, np.int32)
  rows = np.arange(n)
  for step in range(SHOWN):
    x[rows, step, sample] += 1
    x[rows, second + step, np.where(match, sample, other)] += 1
    labels[rows, second + SHOWN + step] = match
  x = x.astype(np.float32)
  return Source(2, Split(x[:_TRAIN], labels[:_TRAIN]), Split(x[_TRAIN:], labels[_TRAIN:]))
