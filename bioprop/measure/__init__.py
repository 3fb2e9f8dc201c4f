"""What a rule did to a network. Nothing here knows rules or Flax: functions are handed in."""
from bioprop.measure.align_score import AlignmentScore, Layer, alignment_scores
from bioprop.measure.alignment import direct_alignment, weight_alignment
from bioprop.measure.angles import Angle, angles
from bioprop.measure.entk import entk, ntk
from bioprop.measure.features import LayerKernels, features
from bioprop.measure.invariants import balance, discrete_drift, fa_invariant
from bioprop.measure.jacobian import Jacobian, evaluate
from bioprop.measure.kernels import (
    centred_alignment,
    cka,
    classification_error,
    effective_rank,
    kernel_regression,
    rates,
    spectrum,
    target_alignment,
)

__all__ = [
    'AlignmentScore', 'Angle', 'Jacobian', 'Layer', 'LayerKernels', 'alignment_scores', 'angles',
    'balance', 'centred_alignment', 'cka', 'classification_error', 'direct_alignment',
    'discrete_drift', 'effective_rank', 'entk', 'evaluate', 'fa_invariant', 'features',
    'kernel_regression', 'ntk', 'rates', 'spectrum', 'target_alignment', 'weight_alignment',
]
