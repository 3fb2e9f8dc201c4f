"""What learning rules do, in theory: to networks of infinite width first.

Of a model of yours, linen, NNX or a function: `infinite`, its kernels in the lazy limit.
`aligned_init` starts one so that feedback and weights are certain to stay aligned.

Of stacks of dense layers, without any model: lazy networks, whose features do not move, by
`lazy_kernels` and `predict`. Rich ones at any gamma_0: `solve_dmft`; of linear units
`solve_linear`; on whitened data `two_layer`. What gradient flow under feedback alignment
guarantees: `flows`. Linear recurrent networks of any size under rules that assign credit in time:
`recurrent`.
"""
from etils import epy

from bioprop.theory import flows, recurrent
from bioprop.theory.activations import (
    Activation,
    Cos,
    Erf,
    Linear,
    Quadrature,
    ReLU,
    Sin,
)
from bioprop.theory.dmft import solve_dmft
from bioprop.theory.elementwise import as_activation
from bioprop.theory.footprint import memory
from bioprop.theory.lazy import LazyKernels, lazy_kernels
from bioprop.theory.linear import solve_linear
from bioprop.theory.piecewise import Affine, Piecewise
from bioprop.theory.prediction import predict, predict_steps
from bioprop.theory.recognise import activation_of
from bioprop.theory.solution import Solution
from bioprop.theory.whitened import TwoLayer, feedback_limit, two_layer

# What knows models lies higher, and is imported when it is first used.
with epy.lazy_api_imports(globals()):
  from bioprop.limit.infinite import InfiniteKernels, infinite
  from bioprop.probes.aligned import aligned_init

__all__ = [
    'Activation', 'Affine', 'Cos', 'Erf', 'InfiniteKernels', 'LazyKernels', 'Linear', 'Piecewise',
    'Quadrature', 'ReLU', 'Sin', 'Solution', 'TwoLayer', 'activation_of', 'aligned_init',
    'as_activation', 'feedback_limit', 'flows', 'infinite', 'lazy_kernels', 'memory', 'predict',
    'predict_steps', 'recurrent', 'solve_dmft', 'solve_linear', 'two_layer',
]
