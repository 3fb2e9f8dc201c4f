"""Plain Flax models. They know nothing of learning rules: the proof that bioprop is a plug-in."""
from bioprop.models.cnn import CNN
from bioprop.models.lenet import LeNet
from bioprop.models.mlp import MLP
from bioprop.models.resnet import ResNet18, ResNet20
from bioprop.models.rnn import RNN
from bioprop.models.transformer import Transformer

# Every model is called as model(x, train=False) with x [n, ...] and returns logits [n, classes],
# but two: the rnn and the transformer map sequences [n, T] (the rnn [n, T, c] too) to logits
# [n, T, classes].
MODELS = {
    'mlp': MLP,
    'cnn': CNN,
    'lenet': LeNet,
    'resnet18': ResNet18,
    'resnet20': ResNet20,
    'rnn': RNN,
    'transformer': Transformer,
}

__all__ = ['CNN', 'MODELS', 'MLP', 'RNN', 'LeNet', 'ResNet18', 'ResNet20', 'Transformer']
