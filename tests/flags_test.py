"""The rule as a flag of somebody else's absl program."""
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

import bioprop
from bioprop.errors import ConfigError

SCRIPT = '''
from absl import app, flags
import flax.linen as nn, jax, jax.numpy as jnp, optax
from flax.training import train_state
import bioprop #

LEARNING_RATE = flags.DEFINE_float('learning_rate', 0.1, 'Of SGD.')
bioprop.flags.define() #

class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))

@jax.jit
def train_step(state, x, y):
  def loss_fn(params):
    logits = state.apply_fn({'params': params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
  loss, gradient = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=gradient), loss

def main(argv):
  x, y = jnp.sin(jnp.arange(60.)).reshape(12, 5), jnp.arange(12) % 3
  model = Net()
  model = bioprop.flags.plug(model, x) #
  state = train_state.TrainState.create(
      apply_fn=model.apply, params=model.init(jax.random.key(0), x)['params'],
      tx=optax.sgd(LEARNING_RATE.value))
  for _ in range(20):
    state, loss = train_step(state, x, y)
    print(float(loss))

app.run(main)
'''


class Net(nn.Module):
  """Two layers; a flag and a random key among the inputs."""
  widths: tuple[int, ...] = (5,)

  @nn.compact
  def __call__(self, x, key=None, train=False):
    for width in self.widths:
      x = nn.tanh(nn.Dense(width)(x))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxNet(nnx.Module):
  """The same two layers."""

  def __init__(self, rngs):
    self.hidden, self.readout = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.readout(nnx.tanh(self.hidden(x)))


class Words(nn.Module):
  """Token ids in."""

  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(3)(nn.tanh(nn.Dense(5)(nn.Embed(7, 4)(tokens))))


X = np.random.RandomState(0).randn(4, 6).astype(np.float32)


@pytest.fixture
def parse():
  """parse('--rule=fa', ...) as a program does; its flags are gone after the test."""
  before = set(flags.FLAGS)

  def parse(*argv, prefix=''):
    bioprop.flags.define(prefix)
    flags.FLAGS(['program', *argv])

  yield parse
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()


def gradient(model, params):
  """Of a loop that carries only parameters."""
  return jax.jit(jax.grad(lambda p: jnp.mean(jnp.sin(model.apply({'params': p}, X)))))(params)


def run(folder, source, *argv):
  """Runs a script; what it prints."""
  (folder / 'script.py').write_text(source)
  done = subprocess.run([sys.executable, 'script.py', *argv], cwd=folder, capture_output=True,
                        text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_a_program_that_knows_nothing_of_us(tmp_path):
  """Three added lines: without the flag, the same bits as without them; with it, another rule."""
  bare = ''.join(line for line in SCRIPT.splitlines(True) if not line.endswith('#\n'))
  assert 'bioprop' not in bare
  losses = run(tmp_path, bare)
  assert run(tmp_path, SCRIPT) == losses
  other = run(tmp_path, SCRIPT, '--rule=dfa', '--rule_options=scale=0.5')
  before, after = (list(map(float, text.split())) for text in (losses, other))
  assert after[0] == before[0] and after[1:] != before[1:] and after[-1] < after[0]


@pytest.mark.parametrize('argv, words', [
    (['--rule=daf'], "there is no rule 'daf'. Did you mean 'dfa'? The rules are: bp, fa, dfa"),
    (['--rule=fa', '--rule_options=roh=0.5'], "Did you mean 'rho'? Its options are: rho, scale"),
    (['--rule_options=rho=0.5'], "rule 'bp' has no option 'rho'"),
    (['--rule=fa', '--rule_options=rho=half'], "got 'half', which is no float"),
    (['--rule=fa', '--rule_options=scale=tiny'], "got 'tiny', which is no float or None"),
    (['--rule=fa', '--rule_options=rho=1.5'], 'on the command line as --rule_options=rho=0'),
    (['--rule=fa', '--rule_options=rho'], "the option 'rho' has no value"),
    (['--rule=fa', '--rule_options=rho=0.1,rho=0.2'], "the option 'rho=0.2' is given twice"),
    (['--rule=dfa', '--rule_options=spatial=whole'], 'spatial must be one of: full, shared'),
    (['--rule_seed=-1'], 'rule_seed'), ([f'--rule_seed={2**32}'], 'rule_seed')])
def test_mistakes_are_told_when_flags_are_parsed(parse, argv, words):
  with pytest.raises(flags.IllegalFlagValueError) as caught:
    parse(*argv)
  assert words in str(caught.value) and '\n' not in str(caught.value)
  assert '--config' not in str(caught.value)


@pytest.mark.parametrize('name, options, want', [
    ('bp', '', {}), ('fa', 'rho=0.5, scale=2', {'rho': 0.5, 'scale': 2.0}),
    ('fa', 'scale=None', {'scale': None}), ('dfa', 'spatial=shared', {'spatial': 'shared'})])
def test_options_have_their_fields_types(parse, name, options, want):
  parse(f'--rule={name}', f'--rule_options={options}')
  assert bioprop.flags.rule() == bioprop.make(name, **want)
  assert all(type(getattr(bioprop.flags.rule(), k)) is type(v) for k, v in want.items())


def test_the_programs_own_help_lists_them(parse):
  parse()
  own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(__name__)}
  assert {'rule', 'rule_options', 'rule_seed'} <= own


def test_define_is_safe_to_call_twice_and_refuses_what_it_cannot_know(parse):
  parse()
  bioprop.flags.define()
  with pytest.raises(ConfigError, match='Call one of them'):
    bioprop.flags.define('my_')


def test_a_program_with_a_rule_of_its_own(parse):
  flags.DEFINE_string('rule', 'majority', 'How votes are counted.')
  with pytest.raises(ConfigError, match=r"flags_test.*bioprop.flags.define\('learning_'\)"):
    bioprop.flags.define()
  parse('--rule=minority', '--learning_rule=usf', '--learning_rule_options=scale=2',
        prefix='learning_')
  assert bioprop.flags.rule() == bioprop.make('usf', scale=2.0)
  assert bioprop.flags.plug(Net()) == bioprop.plug(Net(), bioprop.make('usf', scale=2.0))


def test_undefined_flags_are_told():
  with pytest.raises(ConfigError, match=r'Call bioprop.flags.define\(\)'):
    bioprop.flags.plug(Net())


def test_backprop_leaves_the_model_as_it_is(parse):
  parse()
  linen, module = Net(), NnxNet(nnx.Rngs(0))
  assert bioprop.flags.plug(linen, X) is linen
  assert bioprop.flags.plug(module, X) is module and type(module.hidden) is nnx.Linear


def test_something_that_is_no_model(parse):
  parse('--rule=fa')
  with pytest.raises(TypeError, match='flags.plug takes an instance'):
    bioprop.flags.plug(Net)


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'frsf', 'usf', 'kp', 'hebb'])
@pytest.mark.some(3)
def test_a_loop_that_carries_only_parameters(parse, rule):
  """The feedback is what init of the plugged model makes of the seed."""
  parse(f'--rule={rule}', '--rule_seed=3')
  model = bioprop.flags.plug(Net(), X)
  params = model.init(jax.random.key(1), X)['params']
  keys = {'params': jax.random.key(3), 'feedback': jax.random.key(3)}
  variables = bioprop.plug(Net(), rule).init(keys, X)
  bound = (bioprop.plug(Net(), rule, variables=variables) if 'feedback' in variables
           else bioprop.plug(Net(), rule))
  # Two programs: XLA may order their sums differently.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
               gradient(model, params), gradient(bound, params))
  assert bioprop.flags.plug(Net(), X + 1) is model
  if 'feedback' in variables:
    flags.FLAGS.rule_seed = 4
    other = gradient(bioprop.flags.plug(Net(), X), params)
    assert np.any(other['Dense_0']['kernel'] != gradient(model, params)['Dense_0']['kernel'])


def test_inside_a_jitted_step(parse):
  """The feedback is one constant, not drawn again at every step; keys and flags may be inputs."""
  parse('--rule=dfa')
  params = bioprop.flags.plug(Net()).init(jax.random.key(0), X)['params']

  @jax.jit
  def step(params, x, key):
    model = bioprop.flags.plug(Net(), x, key, train=True)
    run = lambda p: model.apply({'params': p}, x, key, True, rngs={'dropout': key})
    return jax.grad(lambda p: run(p).sum())(params)

  text = str(jax.make_jaxpr(step)(params, X, jax.random.key(0)))
  assert 'erf_inv' not in text  # Normals are made of it.
  step(step(params, X, jax.random.key(0)), X, jax.random.key(1))
  assert step._cache_size() == 1


def test_numpy_token_ids(parse):
  """int64, which JAX takes for int32."""
  parse('--rule=dfa')
  tokens = np.arange(8).reshape(2, 4) % 7
  assert bioprop.flags.plug(Words(), tokens) is bioprop.flags.plug(Words(), jnp.asarray(tokens))


@pytest.mark.slow
def test_models_that_cannot_be_hashed(parse):
  parse('--rule=fa')
  one, two = (bioprop.flags.plug(Net([5, 4]), X) for _ in range(2))
  params = one.init(jax.random.key(0), X)['params']
  jax.tree.map(np.testing.assert_array_equal, gradient(one, params), gradient(two, params))


def test_feedback_made_of_the_initial_weights(parse):
  """They are not known where flags.plug stands; carried as a collection, it works."""
  parse('--rule=fa', '--rule_options=rho=0.5')
  with pytest.raises(ConfigError, match=r'bioprop.plug\(model, bioprop.flags.rule\(\), variables='):
    bioprop.flags.plug(Net(), X)
  variables = bioprop.flags.plug(Net()).init(jax.random.key(0), X)
  plain = bioprop.plug(Net(), bioprop.make('fa', rho=0.5)).init(jax.random.key(0), X)
  jax.tree.map(np.testing.assert_array_equal, variables, plain)


@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_an_nnx_model_is_changed_in_place(parse, rule):
  parse(f'--rule={rule}', '--rule_seed=7')
  models = [NnxNet(nnx.Rngs(0)) for _ in range(2)]
  assert bioprop.flags.plug(models[0], X) is models[0]
  bioprop.plug(models[1], rule, nnx.Rngs(feedback=7), X)
  grads = [nnx.grad(lambda m: jnp.mean(jnp.sin(m(X))))(model) for model in models]
  plain = nnx.grad(lambda m: jnp.mean(jnp.sin(m(X))))(NnxNet(nnx.Rngs(0)))
  jax.tree.map(np.testing.assert_array_equal, *map(nnx.to_pure_dict, grads))
  assert np.any(grads[0]['hidden']['kernel'][...] != plain['hidden']['kernel'][...])


def test_nnx_feedback_may_be_made_of_the_initial_weights(parse):
  """They are there when the rule is installed."""
  parse('--rule=fa', '--rule_options=rho=1')
  model = bioprop.flags.plug(NnxNet(nnx.Rngs(0)))
  np.testing.assert_allclose(model.bioprop_feedback['readout']['kernel'][...],
                             model.readout.kernel[...])
