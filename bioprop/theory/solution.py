"""A solution of mean-field theory, and its file."""
import dataclasses
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping

import numpy as np

from bioprop.errors import TheoryError

_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
  r"""Outputs and kernels of an infinitely wide network over training.

  T times, n samples: those that were trained on and then those for testing. NumPy arrays. Letters
  are those of Bordelon & Pehlevan 2023 (arXiv 2210.02157), section 2. Kernels of layers, and
  responses, are at k of the T times, which are all unless fewer were asked for.

  Attributes:
    rule: name of the learning rule.
    gamma0: richness.
    rho: correlation of the feedback with the initial weights; 0 but under fa.
    learning_rate: eta; the network's own is eta gamma_0^2 N.
    trained: how many of the samples were trained on.
    f: outputs [T, n], or [T, n, C] where targets are [n, C]; f[k] after k steps, less the outputs
      before the first.
    delta: Delta = - dl / df, as f, 0 of samples for testing; of all others, in the batch or not.
    entk: K [T, n, n], the effective eNTK: df_mu / dt = SUM_nu K_mu_nu Delta_nu. Of several outputs
      the mean of K^cc over c.
    kernel_times: the k of T times at which kernels are kept.
    between: K^cc' of all pairs of outputs [k, n, n, C, C]: df_mu_c / dt = SUM_nu_c' K^cc'_mu_nu
      Delta_nu_c'; None where the method does not find it.
    phi: Phi^1, ..., Phi^L, [L, k, n, k, n]: of activities phi(h).
    g: G^1, ..., G^L, of the true signals; None where the method does not find it. Of several
      outputs this and the next two are means of the same output with itself.
    g_pseudo: G~^l [mu t; nu s] = g_mu(t) . g~_nu(s) / N, with the rule's signals.
    pseudo: G~~^l, of the rule's signals; None where the method does not find it.
    responses: the response functions of the layers 1, ..., L - 1, [L - 1, k, n, k, n], by letter.
      Of outputs [n, C] b and d are [L - 1, k, n, C, k, n], and a and c are responses to
      SUM_c Delta_c r_c and SUM_c Delta_c v_c.
    error: relative standard error of 'f', 'entk' and 'phi' where samples were drawn; else how far
      the equations are from being solved.
    converged: whether the errors of f and entk are within what was asked for.
  """
  rule: str
  gamma0: float
  rho: float
  learning_rate: float
  trained: int
  f: np.ndarray
  delta: np.ndarray
  entk: np.ndarray
  kernel_times: np.ndarray
  between: np.ndarray | None
  phi: np.ndarray
  g: np.ndarray | None
  g_pseudo: np.ndarray
  pseudo: np.ndarray | None
  responses: Mapping[str, np.ndarray]
  error: Mapping[str, float]
  converged: bool

  @property
  def times(self) -> np.ndarray:
    """The times [T] of gradient flow at which f, Phi, ... are: eta times the steps."""
    return self.learning_rate * np.arange(len(self.f))

  def at(self, name: str, step: int) -> np.ndarray:
    """A kernel of each layer after so many steps, [L, n, n]: at('g_pseudo', 10), at('phi', -1).

    Raises:
      TheoryError: if there is no such kernel, or none was kept at this time.
    """
    there = [one for one in ('phi', 'g', 'g_pseudo', 'pseudo') if getattr(self, one) is not None]
    if name not in there:
      raise TheoryError(f'this solution has no kernel {name!r} of each layer, but '
                        f'{", ".join(there)}. Say for instance solution.at({there[0]!r}, -1).')
    found = np.flatnonzero(self.kernel_times == (step % len(self.f) if step < 0 else step))
    if not len(found):
      raise TheoryError(f'no kernels were kept after {step} steps, but after '
                        f'{", ".join(map(str, self.kernel_times))}. Say for instance '
                        f'solution.at({name!r}, {self.kernel_times[-1]}).')
    return getattr(self, name)[:, found[0], :, found[0]]

  def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Writes a NumPy archive: the attributes by name, 'responses/a', 'error/f' and so on.

    Raises:
      TheoryError: if the file exists, and is not to be overwritten, or its directory does not.
    """
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
      raise TheoryError(f'{path} exists, and would be overwritten. Choose another name, or say '
                        f'solution.save({path.name!r}, overwrite=True).')
    flat = {'version': np.asarray(_VERSION)}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, Mapping):
        flat |= {f'{field.name}/{key}': np.asarray(one) for key, one in value.items()}
      elif value is not None:
        flat[field.name] = np.asarray(value)
    if not path.parent.is_dir():
      raise TheoryError(f'there is no directory {path.parent} to write {path.name} into: make it '
                        f'first, pathlib.Path({str(path.parent)!r}).mkdir(parents=True).')
    # Whole or not at all: what is there stays until the new file is complete.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
      partial = pathlib.Path(file.name)
      try:
        np.savez_compressed(file, **flat)
        file.close()
        partial.replace(path)
      finally:
        partial.unlink(missing_ok=True)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Solution':
    """Reads what `save` wrote.

    Raises:
      TheoryError: if there is no such file, or it holds something else.
    """
    try:
      with open(path, 'rb') as opened, np.load(opened, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError,
            zipfile.BadZipFile) as error:
      raise TheoryError(f'{path} cannot be read as a solution ({error}). Give a file that '
                        f'solution.save(path) wrote.') from error
    needed = {field.name for field in dataclasses.fields(cls)} - {
        'g', 'pseudo', 'between', 'responses', 'error'}
    if int(flat.pop('version', 0)) != _VERSION or not needed <= set(flat):
      raise TheoryError(f'{path} holds no solution of version {_VERSION}, but {sorted(flat)}. Give '
                        f'a file that solution.save(path) of this release wrote.')
    values = {}
    for field in dataclasses.fields(cls):
      prefix = f'{field.name}/'
      if field.name in ('responses', 'error'):
        found = {name.removeprefix(prefix): one for name, one in flat.items()
                 if name.startswith(prefix)}
        values[field.name] = ({name: float(one) for name, one in found.items()}
                              if field.name == 'error' else found)
      else:
        one = flat.get(field.name)
        values[field.name] = one if one is None or one.ndim else one.item()
    return cls(**values)
