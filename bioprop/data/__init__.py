"""Images, text or sequences, and labels, as numpy arrays: `load(name)` gives the three splits."""
from bioprop.data.characters import bigram_entropy, unigram_entropy
from bioprop.data.datasets import Dataset, choose, load, outline
from bioprop.data.split import Split

__all__ = ['Dataset', 'Split', 'bigram_entropy', 'choose', 'load', 'outline', 'unigram_entropy']
