"""What an experiment that sets theory beside networks is made of: the commented default."""
import ml_collections
from ml_collections import config_dict

from bioprop.errors import ConfigError


def base(experiment: str) -> ml_collections.ConfigDict:
  """Returns the default configuration, which each file configs/theory_*.py overrides.

  Args:
    experiment: 'dynamics', 'lazy', 'two_layer', 'conservation', 'minimum_norm', 'recurrent' or
      'infinite'.
  """
  config = ml_collections.ConfigDict()
  config.experiment = experiment
  config.claims = ()  # Names in bioprop.bench.theory.claims.CLAIMS; of 'dynamics' alone.

  # Inputs of norm sqrt(features), drawn at random or (whitened) orthogonal; targets +1 and -1.
  config.samples = 10
  config.features = 50
  config.whitened = False
  config.data_seed = 0

  config.depth = 1  # Hidden layers.
  config.activation = 'tanh'  # As in theory.as_activation, or 'scaled_relu': sqrt(2) ReLU.
  config.gamma0 = 1.0
  config.learning_rate = 0.1  # Of the sum over samples; the network's own is this gamma_0^2 N.
  config.steps = 50
  # Rules, perhaps with rho, gamma0 and learning_rate of their own.
  config.cases = ({'rule': 'fa'},)

  # Of 'recurrent' alone. The teacher's modes a*, b* and w*; the first is that of single modes.
  config.modes = ((1.0, 1.0, 0.6),)
  config.horizons = (12, 24)  # Of whole networks, and of modes, whose theory has no end.
  config.rates = (0.04, 0.02, 0.01)  # Learning rates, all for the same time.
  config.starts = (0.1, 0.3)  # Standard deviations of students' weights.
  config.points = 2000  # At random on manifolds of random teachers.

  # Of 'infinite' alone. Each problem: dataset, samples, and perhaps loss, widths and seeds.
  config.problems = ({'dataset': 'mnist', 'samples': 500},)
  config.test = 500  # Test samples.
  config.data_dir = config_dict.placeholder(str)  # As --data_dir of bioprop train.
  config.reduce = 4  # Pixels are means over so many squared.
  config.strides = (2, 2)  # Of the convolutions.
  # Whether the readout sees means over positions, which takes kernels of all pairs of them.
  config.pooled = False
  config.rate = 0.5  # Learning rate in units of that from which on infinite width diverges.

  config.gammas = (0.15, 1.0, 6.0)  # Richness whose ends 'two_layer' compares.
  config.widths = (125, 250, 500, 1000)
  config.seeds = 3  # Networks of each width.
  config.copies = 0  # Copies of a neuron in each solution of the theory; 0: its default.
  config.replicas = 4
  config.tolerance = 0.05  # Largest error of the theory; see theory.solve_dmft.

  config.close = 0.05  # How far prediction and measurement may be apart.
  config.slope = 0.1  # How far a slope in width may be from its prediction.
  config.level = 0.1  # Mean square error that a run is timed to.
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a configuration of something else.

  Raises:
    ConfigError: if it is no experiment of theory.
  """
  if 'experiment' not in config:
    raise ConfigError('this configuration trains one network, and has no experiment of theory in '
                      'it: type bioprop train --config=... for it, or '
                      'bioprop theory --config=theory_fa.')
  wrong = sorted(set(config) ^ set(base(config.experiment)))
  if wrong:
    raise ConfigError(f'the configuration has not the entries of an experiment of theory: '
                      f'{", ".join(wrong)} are missing or unknown. Start from '
                      f'bioprop.bench.theory.config.base({config.experiment!r}).')
