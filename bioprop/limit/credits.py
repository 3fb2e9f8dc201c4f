"""What a rule does at each op of a network of infinite width."""
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.fronts.choice import Choice
from bioprop.limit.parameters import Uses
from bioprop.rules import RULES, Rule
from bioprop.rules.align import AlignAda, AlignProp, AlignZero
from bioprop.rules.direct import DirectFeedbackAlignment
from bioprop.rules.direct_kolen_pollack import DirectKolenPollack
from bioprop.rules.feedback import FeedbackAlignment
from bioprop.rules.gated import GatedLinear
from bioprop.rules.hebb import Hebb
from bioprop.rules.kolen_pollack import KolenPollack
from bioprop.rules.last_layer import LastLayer
from bioprop.rules.product import ProductFeedbackAlignment
from bioprop.rules.sign_uniform import UniformSign
from bioprop.theory.fields.derivatives import Credit
from bioprop.theory.fields.leaves import Field, Weighted, base_of, roots_of

# What is sent back through hidden layers knows nothing of the gradient; that which learns does so
# no faster than the weights, and stays as it was at the start as they do.
_BLIND = (DirectFeedbackAlignment, DirectKolenPollack, LastLayer, Hebb, KolenPollack,
          ProductFeedbackAlignment)
_EXACT = (AlignAda, AlignZero, GatedLinear)
_NAMES = ', '.join(sorted(name for name, rule in RULES.items()
                          if rule in (*_BLIND, *_EXACT, AlignProp, FeedbackAlignment, UniformSign)
                          or getattr(rule, 'exact', False) is True))


def credit_of(choice: Choice, output: Field, ops: Sequence[Weighted], uses: Uses) -> Credit | None:
  """The credit that rules assign; None if it is backprop's.

  Raises:
    TheoryError: if a rule has no lazy limit here.
  """
  if choice.network is not None:
    if not isinstance(choice.network, _EXACT):
      raise _unknown(choice.network)
    return None
  if choice.exact:
    return None
  readouts = {base_of(root) for root in roots_of(output)}
  own, sends = {}, {}
  for op in ops:
    path, _, _ = uses.entries[op.weight.name]
    rule = choice.rule_for(path)
    own[op.number] = 0.0 if isinstance(rule, Hebb) and op not in readouts else 1.0
    sends[op.number] = _sent(rule, uses, op)
  return Credit(own, sends)


def _sent(rule: Rule, uses: Uses, op: Weighted) -> float:
  """E W B / E W^2 of the matrix B that a rule sends errors back through."""
  if rule.exact or isinstance(rule, AlignProp):  # At the start B = W.
    return 1.0
  if type(rule) in _BLIND:
    return 0.0
  if type(rule) is FeedbackAlignment:
    return rule.rho * (0.3 + 0.7 * rule.rho if rule.scale is None else rule.scale)
  if isinstance(rule, UniformSign):
    path, entries, _ = uses.entries[op.weight.name]
    weights = jnp.asarray(uses.values[path].reshape(-1)[entries])
    sent = np.asarray(rule.sent_through({'w': weights}, None)['w'])
    return float(np.vdot(np.asarray(weights), sent) / max(np.vdot(weights, weights), 1e-300))
  raise _unknown(rule)


def _unknown(rule) -> TheoryError:
  name = next((name for name, cls in RULES.items() if cls is type(rule)), type(rule).__name__)
  return TheoryError(f'rule={name!r} has no lazy limit here: the rules are {_NAMES}. Type '
                     f'rule=\'fa\', or rule=\'bp\' for backprop.')
