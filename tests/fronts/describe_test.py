"""describe: one row a parameter, and nothing left on backprop in silence."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import OF_TIME, NetworkRule


class Low(nn.Dense):
  """A Dense with a matrix of its own beside the kernel."""

  @nn.compact
  def __call__(self, x):
    return super().__call__(x) + x @ self.param('extra', nn.initializers.normal(), (6, 6))


@jax.custom_vjp
def closed(x, w):
  """A product with a derivative of its own, which no rule can enter."""
  return x @ w


closed.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (
    g @ kept[1].T, jnp.einsum('nti,ntj->ij', kept[0], g)))


class Everything(nn.Module):
  """Embedding, norm, attention, a custom matrix, and one that rules cannot reach."""

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(9, 6)(tokens)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.MultiHeadDotProductAttention(2)(x)
    x = x @ self.param('mine', nn.initializers.normal(), (6, 6))
    x = nn.relu(closed(Low(6)(x), self.param('hidden', nn.initializers.normal(), (6, 6))))
    gain = self.param('gain', nn.initializers.ones, (6,))
    return nn.Dense(3, name='readout')(x * gain[None, None])


TOKENS = jnp.zeros((2, 4), jnp.int32)


# gln, whose gates are projections of numbers, refuses tokens.
@pytest.mark.parametrize('rule', [
    rule for rule in bioprop.RULES if rule not in ('gln', *OF_TIME)])
@pytest.mark.some(3)
def test_one_row_for_each_parameter(rule):
  """Paths and shapes are those of the variables; flags may be positional."""
  report = bioprop.describe(Everything(), rule, TOKENS, True)
  choice = rule if issubclass(bioprop.RULES[rule], NetworkRule) else {'hidden': 'bp', '*': rule}
  params = jax.eval_shape(lambda k: bioprop.plug(Everything(), choice).init(k, TOKENS, True),
                          jax.random.key(0))['params']
  leaves = {'/'.join(p.key for p in path): leaf.shape
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  assert {row.path: row.shape for row in report} == leaves and len(report) == len(leaves)
  rows = {row.path: row for row in report}
  if issubclass(bioprop.RULES[rule], NetworkRule):
    assert {row.rule for row in report} == {rule} and not report.left_out
    return
  for path in ('mine', 'Low_0/extra', 'Embed_0/embedding', 'readout/kernel', 'readout/bias'):
    assert rows[path].rule == rule
  assert rows['gain'].rule == rows['BatchNorm_0/scale'].rule == 'local'
  assert rows['hidden'].rule == 'BACKPROP' and 'custom_vjp_call' in rows['hidden'].note
  assert {row.path for row in report.left_out} == {'hidden'}
  assert 'WARNING: 1 weight(s) stay on backprop: hidden' in str(report)


@pytest.mark.parametrize('rule, feedback', [
    ('bp', None), ('fa', (6, 3)), ('dfa', (3, 6)), ('usf', None), ('kp', (6, 3))])
def test_feedback_shapes(rule, feedback):
  """Of the readout, an op [6, 3] with errors per position."""
  rows = {row.path: row for row in bioprop.describe(Everything(), rule, TOKENS, train=False)}
  assert rows['readout/kernel'].feedback == feedback
  assert rows['readout/bias'].feedback is None
  assert rows['Embed_0/embedding'].feedback is None  # Tokens take no cotangent.


def test_choices_and_plugged_models(tools):
  """Each layer by its own rule; a plugged model is described by what it has."""
  choice = {'MultiHead*': 'fa', 'Low_0': bioprop.make('usf'), '*': 'bp'}
  rules = {r.path: r.rule for r in bioprop.describe(Everything(), choice, TOKENS, True)}
  assert rules['MultiHeadDotProductAttention_0/query/kernel'] == 'fa'
  assert rules['Low_0/kernel'] == 'usf' and rules['readout/kernel'] == 'bp'
  plugged = bioprop.plug(tools.Net(), {'hidden': 'dfa', '*': 'fa'})
  rows = bioprop.describe(plugged, None, jax.ShapeDtypeStruct((4, 6), jnp.float32))
  assert [(r.path, r.rule) for r in rows] == [
      ('hidden/bias', 'dfa'), ('hidden/kernel', 'dfa'),
      ('readout/bias', 'fa'), ('readout/kernel', 'fa')]


def test_learned_beside_direct_feedback(tools):
  """Each is where its rule keeps it, and there is a row for what is a parameter."""
  choice = {'readout': 'kp', '*': 'dfa'}
  variables = jax.eval_shape(lambda key: bioprop.plug(tools.Net(), choice).init(key, tools.x),
                             jax.random.key(0))
  assert set(variables['params']['readout']) == {'kernel', 'bias', 'feedback_kernel'}
  assert 'readout' not in variables.get('feedback', {})
  rows = {row.path: row for row in bioprop.describe(tools.Net(), choice, tools.x)}
  assert rows['readout/feedback_kernel'].note == 'learned feedback' and len(rows) == 5
  swapped = {row.path: row for row in bioprop.describe(
      tools.Net(), {'readout': 'dfa', '*': 'kp'}, tools.x)}
  assert swapped['readout/kernel'].feedback == (3, 6) and len(swapped) == 5


def test_the_activity_of_hebbian_layers(tools):
  """The note names the nonlinearity that was found."""
  notes = {r.path: r.note for r in bioprop.describe(tools.Net(), 'hebb', tools.x)}
  assert notes['hidden/kernel'] == 'tanh' and notes['readout/kernel'] == 'identity'


def test_samples_that_the_model_refuses(tools):
  """There is none, there is no array in it, it has no batch, or another width than is cut."""
  for sample, words in (((), 'given nothing'), ((None,), 'given None'), ((3,), 'given 3')):
    with pytest.raises(errors.SampleError, match=rf'{words}.*bioprop\.describe\(\.\.\., x\)'):
      bioprop.describe(tools.Net(), 'fa', *sample)
  with pytest.raises(errors.SampleError, match=r'Net cannot be called on float32\[\]: IndexError'):
    bioprop.describe(tools.Net(), 'fa', jnp.float32(1))
  with pytest.raises(errors.SampleError, match=r'Net cannot be called on float32\[4, 6\].*TypeE'):
    bioprop.describe(tools.Net(), 'fa', tools.x, tools.x)


@pytest.mark.parametrize('last, normalised', [
    (nn.softmax, True), (lambda h: nn.softmax(h, 0), True), (nn.log_softmax, False),
    (nn.sigmoid, False), (jnp.exp, False), (lambda h: h / jnp.sum(h, -1, keepdims=True), False),
    (lambda h: jnp.exp(h) / jnp.sum(h, -1, keepdims=True), False), (lambda h: h, False)])
def test_a_softmax_at_the_output(tools, last, normalised):
  """What a cross-entropy of logits would apply once more."""
  report = bioprop.describe(nn.Sequential([tools.Net(), last]), 'fa', tools.x)
  assert report.normalised is normalised
  assert ('return what goes into it' in str(report)) is normalised


class Step(nn.Module):
  """A norm and a matrix that multiplies elementwise, for a scan."""

  @nn.compact
  def __call__(self, x, _):
    x = nn.Dense(6)(nn.LayerNorm()(x))
    return x * self.param('table', nn.initializers.ones, (4, 6))[None], None


class Scanned(nn.Module):
  """Steps in a scan, below a position embedding and a readout."""

  @nn.compact
  def __call__(self, x):
    x += self.param('position', nn.initializers.ones, (4, 6))[None]
    steps = nn.scan(nn.remat(Step), variable_axes={'params': 0}, split_rngs={'params': True},
                    length=2)
    return nn.Dense(3)(steps(name='steps')(x, None)[0])


def test_scans_describe_what_each_step_has():
  """A norm's stacked scales are vectors; a step's matrix is one; the owner is the user's class."""
  report = bioprop.describe(Scanned(), 'fa', jnp.ones((2, 4, 6)))
  rows = {row.path: row for row in report}
  assert rows['steps/LayerNorm_0/scale'].shape == (2, 6)
  assert [row.path for row in report.elementwise] == ['steps/table']
  assert rows['position'].layer == 'Scanned'
