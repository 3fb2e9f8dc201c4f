"""The experiments by name: each gives claims with their evidence."""
import difflib

from bioprop.bench.theory import dynamics
from bioprop.bench.theory.claim import Claim
from bioprop.bench.theory.claims import CLAIMS
from bioprop.bench.theory.flows import conservation, minimum_norm
from bioprop.bench.theory.lazy import lazy
from bioprop.bench.theory.two_layer import two_layer
from bioprop.errors import ConfigError


def run(config) -> list[Claim]:
  """Runs one experiment.

  Raises:
    ConfigError: if there is no such experiment or claim.
  """
  if config.experiment not in EXPERIMENTS:
    raise ConfigError(f'there is no experiment {config.experiment!r}: they are '
                      f'{", ".join(EXPERIMENTS)}.')
  return EXPERIMENTS[config.experiment](config)


def _dynamics(config) -> list[Claim]:
  for name in config.claims:
    if name not in CLAIMS:
      close = difflib.get_close_matches(name, CLAIMS, n=1)
      raise ConfigError(f'there is no claim {name!r}.{f" Did you mean {close[0]!r}?" * len(close)} '
                        f'They are {", ".join(CLAIMS)}.')
  outcomes = dynamics.outcomes(config)
  _, y = dynamics.data(config)
  return [CLAIMS[name](outcomes, y, config) for name in config.claims]


EXPERIMENTS = {'dynamics': _dynamics, 'lazy': lazy, 'two_layer': two_layer,
               'conservation': conservation, 'minimum_norm': minimum_norm}
