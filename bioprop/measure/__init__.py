"""What a rule did to a network.

A model of yours, on a batch, in two lines: `Probe`. What it is made of: `jacobians` (true and
pseudo, gradients and updates), `feedback_weights` (what errors go back through), `layers`.

Kernels: `ntk` and the effective `entk`; of layers `features`; what kernels say: `target_alignment`,
`centred_alignment`, `cka`, `effective_rank`, `spectrum`, `rates`, `kernel_regression`,
`classification_error`. Credit: `angles`, `weight_alignment`, `direct_alignment`,
`alignment_scores`. What feedback alignment and backprop conserve: `fa_invariant`, `balance`,
`discrete_drift`. These see arrays and functions, never rules or models.
"""
from etils import epy

from bioprop.measure.align_score import AlignmentScore, Layer, alignment_scores
from bioprop.measure.alignment import direct_alignment, weight_alignment
from bioprop.measure.credit import Angle, angles
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
from bioprop.measure.layer_kernels import LayerKernels, features
from bioprop.measure.tangent import entk, ntk

# What knows models lies higher, and is imported when it is first used.
with epy.lazy_api_imports(globals()):
  from bioprop.probes.feedback_weights import FeedbackWeights, feedback_weights
  from bioprop.probes.jacobian import Jacobians, jacobians
  from bioprop.probes.layers import layers
  from bioprop.probes.probe import Probe

__all__ = [
    'AlignmentScore', 'Angle', 'FeedbackWeights', 'Jacobian', 'Jacobians', 'Layer', 'LayerKernels',
    'Probe', 'alignment_scores', 'angles', 'balance', 'centred_alignment', 'cka',
    'classification_error', 'direct_alignment', 'discrete_drift', 'effective_rank', 'entk',
    'evaluate', 'fa_invariant', 'features', 'feedback_weights', 'jacobians', 'kernel_regression',
    'layers', 'ntk', 'rates', 'spectrum', 'target_alignment', 'weight_alignment',
]
