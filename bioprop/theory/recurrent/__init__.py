"""Linear recurrent networks under rules that assign credit in time: bptt, tbptt, rflo and eprop.

Williams, Payeur & Lajoie 2026 (arXiv 2606.00243). One mode at a time: `mode_flow`, `mode_loss`,
`trajectory`. Where it comes to rest: `manifold`, `linearised`, `saddle`. Whole matrices, aligned or
not: `network_update`, `network_loss`, `learn`, `from_modes`, `to_modes`, and `rank_bound`.
"""
from bioprop.theory.recurrent.manifolds import Linearised, linearised, manifold, saddle
from bioprop.theory.recurrent.modes import Mode, Trajectory, mode_flow, mode_loss, trajectory
from bioprop.theory.recurrent.networks import (
    Learned,
    Network,
    from_modes,
    learn,
    network_loss,
    network_update,
    rank_bound,
    to_modes,
)

__all__ = [
    'Learned', 'Linearised', 'Mode', 'Network', 'Trajectory', 'from_modes', 'learn', 'linearised',
    'manifold', 'mode_flow', 'mode_loss', 'network_loss', 'network_update', 'rank_bound', 'saddle',
    'to_modes', 'trajectory',
]
