"""Training steps of BioTorch, for `bioprop.bench.peers`, in a process of its own.

BioTorch brings PyTorch and asks for versions of its own: nothing of bioprop is imported here. The
networks are those of `bioprop.models`, in PyTorch, and BioTorch makes them learn by a rule as its
users do. Reads a case from a line of its input and answers with a line: {"model", "rule", "batch",
"steps"} with {"seconds"}, of one step, over `steps` of them.
"""
import contextlib
import json
import sys
import time

import torch
from biotorch.module.biomodule import BioModule
from torch import nn

RULES = {'bp': 'backpropagation', 'fa': 'fa', 'dfa': 'dfa'}
SHAPES = {'mlp': (1, 28, 28), 'lenet': (1, 28, 28), 'resnet20': (3, 32, 32)}


class Block(nn.Module):
  """Two 3x3 convolutions with BatchNorm and a shortcut."""

  def __init__(self, before, features, strides):
    super().__init__()
    self.body = nn.Sequential(
        nn.Conv2d(before, features, 3, strides, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU(),
        nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features))
    self.shortcut = nn.Identity() if before == features else nn.Sequential(
        nn.Conv2d(before, features, 1, strides, bias=False), nn.BatchNorm2d(features))

  def forward(self, x):
    """Maps x [n, before, h, w] to [n, features, h / strides, w / strides]."""
    return torch.relu(self.body(x) + self.shortcut(x))


def network(name):
  """The model of `bioprop.bench.steps` of this name."""
  if name == 'mlp':
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024),
                         nn.ReLU(), nn.Linear(1024, 10))
  if name == 'lenet':
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(), nn.Linear(120, 84),
        nn.ReLU(), nn.Linear(84, 10))
  widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
  blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip(widths[:-1], widths[1:])]
  return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                       *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def stepper(name, rule, batch):
  """A function that takes one step of SGD with momentum on one batch."""
  torch.manual_seed(0)
  with contextlib.redirect_stdout(sys.stderr):  # BioTorch tells what it converts.
    model = BioModule(network(name), RULES[rule], output_dim=10).train()
  x, y = torch.randn(batch, *SHAPES[name]), torch.randint(0, 10, (batch,))
  optimizer, loss_of = torch.optim.SGD(model.parameters(), 1e-3, 0.9), nn.CrossEntropyLoss()

  def step():
    optimizer.zero_grad()
    loss_of(model(x, y, loss_of), y).backward()
    optimizer.step()

  return step


def main():
  """Answers until the input ends."""
  steppers = {}
  for line in sys.stdin:
    case = json.loads(line)
    key = case['model'], case['rule'], case['batch']
    if key not in steppers:
      steppers[key] = stepper(*key)
      steppers[key]()
    began = time.perf_counter()
    for _ in range(case['steps']):
      steppers[key]()
    print(json.dumps({'seconds': (time.perf_counter() - began) / case['steps']}), flush=True)


if __name__ == '__main__':
  main()
