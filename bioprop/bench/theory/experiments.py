"""The experiments by name: each gives claims with their evidence."""
import difflib

from bioprop.bench.theory import dynamics, recurrent
from bioprop.bench.theory.claim import Claim
from bioprop.bench.theory.claims import CLAIMS, NEEDS
from bioprop.bench.theory.flows import conservation, minimum_norm
from bioprop.bench.theory.infinite import infinite
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


def _check_needs(name: str, config) -> None:
  """Refuses a claim of what is not there, before anything is trained."""
  needs, rules = NEEDS.get(name, ()), [case['rule'] for case in config.cases]
  missing = [rule for rule in needs if rule not in rules] if needs != 2 else []
  if missing:
    raise ConfigError(f'the claim {name} is about {" and ".join(needs)}, and config.cases has no '
                      f'{" and no ".join(missing)}. Add {{\'rule\': {missing[0]!r}}}.')
  if needs == 2 and len(rules) < 2:
    raise ConfigError(f'the claim {name} compares cases in their order, and there are '
                      f'{len(rules)}. Give two or more in config.cases.')
  if name == 'kernels_converge' and len(set(config.widths)) < 2:
    raise ConfigError(f'the claim {name} needs two widths or more, and there are '
                      f'{config.widths}. Say for instance config.widths = (250, 1000).')


def _dynamics(config) -> list[Claim]:
  for name in config.claims:
    if name not in CLAIMS:
      close = difflib.get_close_matches(name, CLAIMS, n=1)
      raise ConfigError(f'there is no claim {name!r}.{f" Did you mean {close[0]!r}?" * len(close)} '
                        f'They are {", ".join(CLAIMS)}.')
    _check_needs(name, config)
  outcomes = dynamics.outcomes(config)
  _, y = dynamics.data(config)
  return [CLAIMS[name](outcomes, y, config) for name in config.claims]


EXPERIMENTS = {'dynamics': _dynamics, 'lazy': lazy, 'two_layer': two_layer,
               'conservation': conservation, 'minimum_norm': minimum_norm,
               'recurrent': recurrent.run, 'infinite': infinite}
