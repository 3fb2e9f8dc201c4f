"""bioprop: train unmodified Flax models by other learning rules than backprop."""
from bioprop import flags
from bioprop.flags import from_flags
from bioprop.limit.infinite import InfiniteKernels, infinite
from bioprop.plug.describe import describe
from bioprop.plug.function import transform
from bioprop.plug.linen import wrap
from bioprop.plug.nnx import Feedback, install, uninstall
from bioprop.probes import Probe
from bioprop.probes.aligned import aligned
from bioprop.probes.feedback_weights import feedback
from bioprop.probes.jacobian import jacobians
from bioprop.probes.layers import layers
from bioprop.rules import RULES, Rule, make
from bioprop.streams.online import online

__all__ = ['RULES', 'Feedback', 'InfiniteKernels', 'Probe', 'Rule', 'aligned', 'describe',
           'feedback', 'flags', 'from_flags', 'infinite', 'install', 'jacobians', 'layers', 'make',
           'online', 'transform', 'uninstall', 'wrap']
