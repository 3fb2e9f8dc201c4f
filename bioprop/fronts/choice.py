"""What a front is told: which layer gets which rule, and which of the outputs is the network's."""
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.errors import OutputError, PatternError
from bioprop.network.store import matches
from bioprop.rules import AnyRule, NetworkRule, as_rule
from bioprop.typing import PyTree

Where = int | str | tuple[int | str, ...] | None


@dataclasses.dataclass(frozen=True)
class Choice:
  """An ordered list of (path pattern, rule): the first pattern that matches a layer decides.

  A pattern is a shell-style pattern ('*', '?', '[...]') on the layer's path, such as
  'encoder/Dense_0'. It also matches at any depth, and whatever lies inside: 'Conv_*' matches
  'block/Conv_0', and 'encoder' matches 'encoder/Dense_0'.
  """
  rows: tuple[tuple[str, AnyRule], ...]

  def rule_for(self, path: str) -> AnyRule:
    """The rule of the layer at `path`.

    Raises:
      PatternError: if no pattern matches.
    """
    return self._row_for(path)[1]

  def _row_for(self, path: str) -> tuple[str, AnyRule]:
    for row in self.rows:
      if matches(row[0], path):
        return row
    patterns = ', '.join(repr(pattern) for pattern, _ in self.rows)
    raise PatternError(
        f'the layer {path!r} matches none of the patterns {patterns}, so it has no learning rule. '
        f'Name it, or end with a row for the rest: {{..., \'*\': \'bp\'}}.')

  @property
  def network(self) -> NetworkRule | None:
    """The rule of the whole network, None if the layers have rules of their own."""
    rule = self.rows[0][1]
    return rule if isinstance(rule, NetworkRule) else None

  @property
  def exact(self) -> bool:
    """Whether every layer is left on backprop."""
    return all(rule.exact for _, rule in self.rows)

  @property
  def learns(self) -> bool:
    """Whether some layer's feedback is a parameter."""
    return any(rule.learns for _, rule in self.rows)

  @property
  def redraws(self) -> bool:
    """Whether some layer draws feedback at each call."""
    return self.network is None and any(rule.redraws for _, rule in self.rows)

  def learns_at(self, path: str, name: str | None = None) -> bool:
    """Whether feedback of the parameter at `path` learns: what is shaped like it, or `name`."""
    rule = self.rule_for(path)
    return rule.learns and (name is None or name in rule.learns_direct)

  def may_learn(self, leaf: str) -> bool:
    """Whether feedback may learn that is kept as `leaf` and not shaped like a parameter."""
    return any(re.fullmatch(rf'(.+_)?{name}(_\d+)?', leaf) for _, rule in self.rows if rule.learns
               for name in rule.learns_direct)

  @property
  def keeps_frozen(self) -> bool:
    """Whether every layer keeps feedback that is no parameter."""
    return all(not rule.exact and not rule.learns and rule.keeps_feedback for _, rule in self.rows)

  def __str__(self) -> str:
    return ', '.join(repr(rule) if pattern == '*' else f'{pattern!r}: {rule!r}'
                     for pattern, rule in self.rows)

  def check_used(self, paths: list[str]) -> None:
    """Raises PatternError if a pattern decides for none of the model's layers, or none for one."""
    used = {self._row_for(path)[0] for path in paths}
    for pattern, _ in self.rows:
      if pattern not in used and pattern != '*':
        raise PatternError(
            f'the pattern {pattern!r} decides for no layer of this model: it matches none, or '
            f'earlier patterns took them all (the first match wins). The layers are: '
            f'{", ".join(dict.fromkeys(paths))}.')


def choose(rule: 'AnyRule | str | Mapping[str, AnyRule | str]') -> Choice:
  """Reads a rule, a rule's name, or a mapping from path patterns to either.

  Raises:
    UnknownRuleError: if a name is not in `RULES`, or something is no rule at all.
    PatternError: if a mapping is empty, has a pattern that is not a string, or mixes a rule of the
      whole network with others.
  """
  if not isinstance(rule, Mapping):
    return Choice((('*', as_rule(rule)),))
  for pattern in rule:
    if not isinstance(pattern, str) or not pattern:
      raise PatternError(f'a path pattern must be a non-empty string, got {pattern!r}. '
                         f'For instance {{\'Conv_*\': \'fa\', \'*\': \'dfa\'}}.')
  if not rule:
    raise PatternError('the mapping from path patterns to rules is empty, so no layer has a rule. '
                       'For instance {\'Conv_*\': \'fa\', \'*\': \'dfa\'}.')
  rows = tuple((pattern, as_rule(value)) for pattern, value in rule.items())
  for pattern, own in rows:
    if isinstance(own, NetworkRule) and (len(rows) > 1 or pattern != '*'):
      raise PatternError(
          f'the pattern {pattern!r} asks for {type(own).__name__}, which is a rule of the whole '
          f'network: it can be neither mixed with others nor kept to some layers. Give it alone, '
          f'without a mapping, or choose rules of single layers, such as \'align_prop\' or '
          f'\'fa\'.')
  return Choice(rows)


def locate(out: PyTree, where: Where) -> tuple[int, Any]:
  """Finds the output array among the leaves of what a model returned.

  Args:
    out: what the model returned: arrays, or their shapes.
    where: index, key or attribute of the output array, or a tuple of them from the root down;
      None if the model returns just one floating-point array.

  Returns:
    The leaf's position among the leaves of `out`, and the leaf.

  Raises:
    OutputError: if there are several candidates, or none.
  """
  leaves = jax.tree_util.tree_flatten_with_path(out)[0]
  floating = [i for i, (_, leaf) in enumerate(leaves)
              if hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jnp.floating)]
  shapes = ', '.join(f'{jax.tree_util.keystr(path) or "output"}: {tuple(leaf.shape)}'
                     for path, leaf in (leaves[i] for i in floating)) or 'none'
  if where is not None:
    wanted = where if isinstance(where, tuple) else (where,)
    floating = [i for i in floating if _names(leaves[i][0]) == wanted]
  if len(floating) != 1:
    asked = '' if where is None else f' None of them, or several, are at output={where!r}.'
    raise OutputError(
        f'this rule broadcasts the error at the network\'s output, which must be one array; the '
        f'model returns these floating-point arrays: {shapes}.{asked} Say which one is the output, '
        f'by its index or key: output=0 beside the rule, in bioprop.plug.')
  leaf = leaves[floating[0]][1]
  if leaf.ndim < 1:
    raise OutputError(
        'this rule broadcasts the error at the network\'s output to its layers, sample by sample, '
        'but the model returns a scalar, as a model that computes its own loss does. Let the model '
        'return logits of shape [n, classes] and compute the loss outside.')
  return floating[0], leaf


def _names(path) -> tuple[int | str, ...]:
  return tuple(getattr(entry, 'key', getattr(entry, 'idx', getattr(entry, 'name', None)))
               for entry in path)
