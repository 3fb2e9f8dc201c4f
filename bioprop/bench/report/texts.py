"""What counting characters comes to, beside runs on a text."""
from collections.abc import Mapping, Sequence
from typing import Any

from bioprop import data


def entropies(configs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the unigram and bigram entropy of the training text, in nats per character.

  Nothing, unless all runs of these configurations were trained on the same text.
  """
  texts = {(config['dataset'], config['validation']) for config in configs}
  if len(texts) != 1 or configs[0]['dataset'] != 'characters':
    return {}
  train = data.load('characters', validation=configs[0]['validation']).train
  return {'unigram entropy': data.unigram_entropy(train),
          'bigram entropy': data.bigram_entropy(train)}
