"""Measurements of a network while it trains, on one batch."""
from bioprop.probes.probe import Probe, cross_entropy
from bioprop.probes.types import TYPES

__all__ = ['TYPES', 'Probe', 'cross_entropy']
