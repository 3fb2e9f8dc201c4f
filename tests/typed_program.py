"""A program of a user, with what is commonly called, for a type checker: see typing_test.py."""
from typing import assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import bioprop
from bioprop import errors, flags, measure, rules, theory


class Net(nn.Module):
  features: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Dense(self.features)(nn.relu(nn.Dense(256)(x)))


class Layers(nnx.Module):

  def __init__(self, rngs: nnx.Rngs) -> None:
    self.one = nnx.Linear(4, 8, rngs=rngs)
    self.two = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.two(jax.nn.relu(self.one(x)))


def of_linen(x: jax.Array) -> int:
  model = bioprop.plug(Net(), 'dfa')
  assert_type(model, Net)
  variables = model.init(jax.random.key(0), x)
  choice = {'Dense_0': bioprop.make('fa', rho=0.5), '*': 'bp'}
  model = bioprop.plug(Net(), choice, variables=variables, output=0)
  plain = bioprop.unplug(model)
  assert_type(plain, Net)
  return plain.features


def of_nnx(x: jax.Array) -> Layers:
  model = bioprop.plug(Layers(nnx.Rngs(0)), 'dfa', nnx.Rngs(1), x)
  assert_type(model, Layers)
  kinds: type[nnx.Variable[jax.Array]] = bioprop.Feedback
  print(kinds, bioprop.describe(model, None, x))
  return bioprop.unplug(model)


def affine(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  return x @ params['w']


def of_functions(x: jax.Array) -> jax.Array:
  params = {'w': jnp.ones((4, 2))}
  plugged = bioprop.plug(affine, 'dfa')
  feedback = plugged.init_feedback(jax.random.key(0), params, x)
  out: jax.Array = plugged.apply(params, feedback, x)
  return out


def of_flags(model: Net) -> Net:
  flags.define()
  return flags.plug(model)


def of_rules() -> list[str]:
  rule: rules.AnyRule = bioprop.make('fa', rho=0.5)
  names = list(bioprop.RULES)
  assert_type(names, list[str])
  print(bioprop.__version__, bioprop.citation(rule))
  return names


class Mine(bioprop.Rule):
  """A rule of a user."""


def of_streams(x: jax.Array) -> jax.Array:
  stream = bioprop.online(nn.RNN(nn.SimpleCell(8)), 'rflo')
  variables = stream.model.init(jax.random.key(0), x[:, None])
  state = stream.init(variables, x)
  step = stream.step(variables, state, x, lambda out: jnp.sum(out))
  return step.loss


def measured(model: nn.Module, variables: dict[str, object], x: jax.Array) -> float:
  jacobians = measure.jacobians(model, x)
  kernel = measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x, trace=True)
  true = measure.ntk(jacobians.true(variables), x, trace=True)
  by_layer = measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x, per_layer=True)
  assert_type(kernel, jax.Array)
  assert_type(true, jax.Array)
  assert_type(by_layer, dict[str, jax.Array])
  kernels = measure.features(jacobians.true(variables)(x), jacobians.pseudo(variables)(x))
  phi: jax.Array = kernels['Dense_0/kernel'].phi
  by_parameter, total = measure.angles(jacobians.gradient(variables)((x, x)),
                                       jacobians.update(variables)((x, x)))
  print(phi, by_parameter['Dense_0/kernel'].update, total.update_ratio)
  found = measure.feedback_weights(model, variables, x)
  alignment = measure.weight_alignment(found.weights, found.sent)
  print(list(measure.layers(model, x)), measure.Probe(model, 'fa', (x, x)).measure(variables))
  print(alignment, measure.spectrum(kernel), measure.rates(kernel), measure.cka(kernel[None]))
  return float(measure.target_alignment(kernel, x))


def predicted(model: nn.Module, x: jax.Array, y: jax.Array) -> float:
  kernels = bioprop.theory.lazy_kernels(x, 3, 'relu', 'fa', rho=0.5)
  outputs = theory.predict(kernels.entk, y, jnp.linspace(0, 1, 5), cross=kernels.entk)
  infinite = theory.infinite(model, x, rule='fa')
  try:
    solution = theory.solve_dmft(x, y, depth=2, rule='fa', gamma0=1.0, learning_rate=0.1,
                                 steps=20)
  except errors.ConvergenceError as error:
    raise SystemExit(str(error)) from error
  print(solution.f, outputs.train, infinite.entk)
  return theory.feedback_limit(1.0, 2.0)
