"""bioprop: train unmodified Flax models by other learning rules than backprop."""
from bioprop import flags
from bioprop.flags import from_flags
from bioprop.plug.aligned import aligned
from bioprop.plug.feedback import feedback
from bioprop.plug.jacobian import jacobians
from bioprop.plug.layers import layers
from bioprop.plug.linen import wrap
from bioprop.plug.nnx import install, uninstall
from bioprop.plug.nnx_layer import Feedback
from bioprop.plug.report import describe
from bioprop.probes import Probe
from bioprop.rules import RULES, Rule, make

__all__ = ['RULES', 'Feedback', 'Probe', 'Rule', 'aligned', 'describe', 'feedback', 'flags',
           'from_flags', 'install', 'jacobians', 'layers', 'make', 'uninstall', 'wrap']
