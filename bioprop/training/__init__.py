"""Training: `run(config, workdir)`, and the commented default configuration."""
from bioprop.training.config import base
from bioprop.training.loop import run
from bioprop.training.results import Results

__all__ = ['Results', 'base', 'run']
