"""bioprop: train unmodified Flax models by other learning rules than backprop."""
from bioprop import flags
from bioprop.flags import from_flags
from bioprop.plug.describe import describe
from bioprop.plug.function import transform
from bioprop.plug.linen import wrap
from bioprop.plug.nnx import Feedback, install, uninstall
from bioprop.rules import RULES, Rule, make

__all__ = ['RULES', 'Feedback', 'Rule', 'describe', 'flags', 'from_flags', 'install', 'make',
           'transform', 'uninstall', 'wrap']
