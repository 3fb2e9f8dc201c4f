"""What a rule did to a network: measurements that work on any model, linen or NNX."""
from bioprop.measure.align_score import AlignmentScore, alignment_scores

__all__ = ['AlignmentScore', 'alignment_scores']
