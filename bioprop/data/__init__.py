"""Images or text, and labels, as numpy arrays: `load(name)` gives train, validation and test."""
from bioprop.data.characters import bigram_entropy, unigram_entropy
from bioprop.data.datasets import Dataset, load
from bioprop.data.split import Split

__all__ = ['Dataset', 'Split', 'bigram_entropy', 'load', 'unigram_entropy']
