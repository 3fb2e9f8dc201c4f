"""What a rule did to a network. Nothing here knows rules or Flax: functions are handed in."""
from bioprop.measure.align_score import AlignmentScore, Layer, alignment_scores
from bioprop.measure.entk import entk, ntk
from bioprop.measure.jacobian import Jacobian

__all__ = ['AlignmentScore', 'Jacobian', 'Layer', 'alignment_scores', 'entk', 'ntk']
