"""bioprop: networks of JAX that do not learn by backprop.

  model = bioprop.plug(Net(), 'dfa')       # linen, NNX or any function; jax.grad is the rule's

Use a rule
  plug(model, rule, ...)      a model whose gradients are the rule's pseudogradients
  unplug(model)               the model without it
  describe(model, rule, x)    what will learn how, before anything is trained
  online(model, rule)         a recurrent model that learns from streams, step by step
  flags                       --rule for absl programs: flags.define(), flags.plug(model)
  Feedback                    the variables of NNX models that hold frozen feedback

Rules
  RULES                       all of them, by name
  make(name, **options)       one of them: make('fa', rho=0.5)
  citation(rule)              BibTeX of what was used: the papers behind a rule, and bioprop
  Rule, rules                 what to subclass for a rule of your own, and the rules' classes

What a rule did, and what it does at infinite width
  measure                     Probe, jacobians, entk, angles, alignment, ...
  theory                      infinite, lazy_kernels, solve_dmft, flows, recurrent, ...

  errors                      every mistake that bioprop knows, by class
  __version__                 of the package
"""
from etils import epy

# Imported when they are first used: the command line answers before JAX is there.
with epy.lazy_api_imports(globals()):
  from bioprop import errors, flags, measure, rules, theory
  from bioprop.fronts.describe import describe
  from bioprop.fronts.nnx import Feedback
  from bioprop.fronts.plug import plug, unplug
  from bioprop.rules import RULES, Rule, make
  from bioprop.rules.citation import citation
  from bioprop.streams.online import online

__all__ = ['RULES', 'Feedback', 'Rule', 'citation', 'describe', 'errors', 'flags', 'make',
           'measure', 'online', 'plug', 'rules', 'theory', 'unplug']

__version__ = '0.1.0'  # A literal, which setup.cfg reads without importing anything.
