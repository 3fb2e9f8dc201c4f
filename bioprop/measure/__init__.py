"""What a rule did to a network. Nothing here knows rules or Flax: functions are handed in."""
from bioprop.measure.align_score import AlignmentScore, Layer, alignment_scores
from bioprop.measure.entk import Jacobian, entk

__all__ = ['AlignmentScore', 'Jacobian', 'Layer', 'alignment_scores', 'entk']
