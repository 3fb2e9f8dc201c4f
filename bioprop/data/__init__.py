"""Images and labels as numpy arrays: `load(name)` gives train, validation and test."""
from bioprop.data.datasets import Dataset, load
from bioprop.data.split import Split

__all__ = ['Dataset', 'Split', 'load']
