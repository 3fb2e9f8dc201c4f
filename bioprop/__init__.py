"""bioprop: train unmodified Flax models by other learning rules than backprop."""
from bioprop.plug.linen import wrap
from bioprop.plug.report import describe
from bioprop.rules import RULES, Rule, make

__all__ = ['RULES', 'Rule', 'describe', 'make', 'wrap']
