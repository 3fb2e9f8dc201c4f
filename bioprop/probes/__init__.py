"""Measurements of a network while it trains, on one batch."""
from bioprop.probes.lazy import Descent, Lazy, find_lazy
from bioprop.probes.probe import Probe, cross_entropy
from bioprop.probes.types import PREDICTED, TYPES

__all__ = ['PREDICTED', 'TYPES', 'Descent', 'Lazy', 'Probe', 'cross_entropy', 'find_lazy']
