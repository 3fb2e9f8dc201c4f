"""What a rule did to a network. Nothing here knows rules or Flax: functions are handed in."""
from bioprop.measure.align_score import AlignmentScore, Layer, alignment_scores

__all__ = ['AlignmentScore', 'Layer', 'alignment_scores']
