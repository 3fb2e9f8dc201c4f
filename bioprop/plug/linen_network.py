"""A linen model as functions of its parameters by path, with its ops marked."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from bioprop.errors import MeasureError
from bioprop.plug.linen import Plugged, marked_apply, plain_model
from bioprop.plug.marks import marked
from bioprop.plug.network import PlugNetwork
from bioprop.plug.session import FEEDBACK


def make_network(model: nn.Module, sample: tuple[Any, ...], rngs: Mapping[str, jax.Array],
                 kwargs: Mapping[str, Any]) -> PlugNetwork:
  """The network of a linen model, plain or plugged.

  Args:
    model: an unbound module.
    sample: shapes of its inputs.
    rngs: its random streams.
    kwargs: its keyword arguments.
  """
  choice = model._plug.choice if isinstance(model, Plugged) else None
  bound = getattr(model, '_bound', None)
  whole = choice.network if choice else None
  streams = {name: jax.random.key(0) for name in ('params', FEEDBACK, 'dropout')}
  own = lambda one: jax.eval_shape(lambda *args: one.init(streams, *args, **kwargs), *sample)
  names = set(_by_path(own(plain_model(model))['params']))
  keys = _keys(own(model)['params'])
  expected = {**own(model), **({} if bound is None else {FEEDBACK: bound})}

  def split(variables):
    if not isinstance(variables, Mapping):
      raise MeasureError(f'a linen model is measured at its variables, what init returned, and '
                         f'this is a {type(variables).__name__}.')
    variables = {**({} if bound is None else {FEEDBACK: bound}), **variables}
    _check(variables, expected)
    params = _by_path(variables['params'])
    return ({path: params[path] for path in sorted(names)},
            {**{k: v for k, v in variables.items() if k != 'params'},
             'learned': {path: leaf for path, leaf in params.items() if path not in names}})

  def joined(params, others):
    rest = {k: v for k, v in others.items() if k != 'learned'}
    return {**rest, 'params': _nested(keys, {**params, **others['learned']})}

  def plain(params, others, inputs):
    variables = {k: v for k, v in joined(params, others).items() if k != FEEDBACK}
    return marked_apply(model, variables, inputs, rngs, kwargs)

  def acting(params, others, inputs):
    if choice is None:
      return plain(params, others, inputs)
    with marked():
      return model.apply(joined(params, others), *inputs, rngs=rngs, **kwargs)

  rules = (whole,) if whole else tuple(rule for _, rule in choice.rows) if choice else ()

  def rule_at(label):
    return None if choice is None or whole else choice.rule_for(label.removesuffix('.attend'))

  def stored(label, others):
    path = label.removesuffix('.attend')
    inside = f'{path}/' if path else ''
    found = {name.removeprefix(inside): leaf
             for name, leaf in _by_path(others.get(FEEDBACK, {})).items()
             if name.startswith(inside)}
    learned = f'{inside}{FEEDBACK}_'
    found |= {name.removeprefix(learned): leaf for name, leaf in others['learned'].items()
              if name.startswith(learned)}
    return {name: leaf for name, leaf in found.items() if '/' not in name}

  return PlugNetwork(
      plain, acting, rules, whole is None and all(rule.exact for rule in rules),
      bool(whole and whole.own_forward), rule_at, stored,
      lambda others: _by_path(others[FEEDBACK]['initial']), lambda path: path,
      model._plug.output if choice else None, split)


def _keys(tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """The keys on the way to each leaf, by path; a name may hold a slash itself (nn.WeightNorm)."""
  flat = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(tree))[0]
  return {'/'.join(keys): keys for keys in (tuple(entry.key for entry in at) for at, _ in flat)}


def _by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
  return dict(zip(_keys(tree), jax.tree.leaves(nn.meta.unbox(tree))))


def _nested(keys: Mapping[str, tuple[str, ...]], leaves: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = keys[path]
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def _check(variables, expected) -> None:
  shapes = lambda tree: jax.tree.map(lambda a: tuple(a.shape), nn.meta.unbox(tree))
  if shapes(dict(variables)) != shapes(expected):
    raise MeasureError(
        f'the variables are not those of the model that the derivatives were prepared for: they '
        f'have the collections {sorted(variables)}, and its own init gives {sorted(expected)}, or '
        f'their shapes differ. Give all of what init returned, with the parameters as they are '
        f'now: {{**variables, \'params\': params}}.')
