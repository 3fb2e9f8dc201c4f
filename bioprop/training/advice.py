"""What works and is most likely not meant: said once, with the line to type."""
import os

import ml_collections
from absl import logging

from bioprop.rules import RULES, AnyRule
from bioprop.rules.direct_kolen_pollack import DirectKolenPollack
from bioprop.rules.kolen_pollack import KolenPollack
from bioprop.rules.product import ProductFeedbackAlignment
from bioprop.rules.target import DirectRandomTargetProjection

# Their feedback gets the updates of weights, and aligns with these as both decay.
_DECAYING = (KolenPollack, DirectKolenPollack, ProductFeedbackAlignment)
_GREW = 2.0  # A loss that is so much larger than at the first step is not on its way down.


def before(rule: AnyRule, config: ml_collections.ConfigDict, quantities: bool) -> list[str]:
  """What can be seen before the first step.

  Args:
    rule: of the run.
    config: its configuration.
    quantities: labels stand for quantities, and are no classes.

  Returns:
    A paragraph for each.
  """
  found = []
  if isinstance(rule, _DECAYING) and not config.weight_decay:
    name = next(name for name, cls in RULES.items() if cls is type(rule))
    fixed = 'dfa' if isinstance(rule, DirectKolenPollack) else 'fa'
    found.append(
        f'{name} runs without weight decay: feedback gets the updates of the weights, so that what '
        f'they differed by at the start never decays, and they do not align. Type '
        f'--config.weight_decay=1e-4, or --config.rule={fixed} for feedback that stays as it is.')
  if isinstance(rule, DirectRandomTargetProjection) and quantities:
    found.append(
        f'drtp sends the target class down, and the labels of {config.dataset} are quantities '
        f'without classes: it sends the same signal for every sample whose output is too small, '
        f'and none for others. Type --config.rule=dfa, which sends the error.')
  return found


def after(rule: AnyRule, first: float, mean: float) -> list[str]:
  """What the first epoch shows.

  Args:
    rule: of the run.
    first: the loss of the first step.
    mean: the mean loss of the epoch.

  Returns:
    A paragraph if the loss has grown.
  """
  if mean <= _GREW * first:
    return []
  return [
      f'the mean training loss of the first epoch is {mean:.3g}, and that of its first step was '
      f'{first:.3g}: the steps do not go down the loss. Try a smaller --config.learning_rate, or '
      f'--config.clip_norm=1. {cure(rule)}'.strip()]


def cure(rule: AnyRule) -> str:
  """What to type besides, where signals blow up under a rule; '' if there is nothing."""
  if rule.exact or not hasattr(rule, 'scale'):
    return ''
  now = 'its default' if rule.scale is None else f'{rule.scale:g}'
  return (f'Errors that come back through feedback do not descend until weights have aligned with '
          f'it, and activities grow until then: a smaller --config.rule_options.scale (it is '
          f'{now}) may do.')


def tell(run: str | os.PathLike, paragraphs: list[str]) -> None:
  """Logs each as a warning that names the run, one of many perhaps."""
  for paragraph in paragraphs:
    logging.warning('%s: %s', run, paragraph)
