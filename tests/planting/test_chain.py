import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.planting.chain import read_chain
from lotterykit.planting.plant import plant
from lotterykit.planting.targets import helix, relu


def test_layers_of_a_chain():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(4 * 9, 5, bias=False),
    )
    conv, linear = read_chain(net, "mother")
    assert (conv.name, conv.weight.shape, conv.units, conv.inputs) == ("0.0.", (4, 3, 9), 4, 3)
    assert (linear.name, linear.weight.shape, linear.units, linear.inputs) == ("2.", (5, 4, 9), 5, 4)
    assert linear.bias is None
    assert conv.after[0] == "relu"
    assert len(conv.after) == 2


def test_a_target_is_a_chain_of_the_same_kind():
    target = helix(5)
    for a, b in zip(
        read_chain(target, "target"), read_chain(target.module(torch.float64), "target"), strict=True
    ):
        assert (a.kind, a.after) == (b.kind, b.after)
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)


BAD_MOTHERS = {
    "wider than its mother": lambda: mlp([1, 29, 29, 29, 3]),
    "depth": lambda: mlp([1, 100, 100, 3]),
    "inputs": lambda: mlp([2, 100, 100, 100, 3]),
    "outputs": lambda: mlp([1, 100, 100, 100, 4]),
    "batch-norm": lambda: nn.Sequential(nn.Linear(1, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 3)),
    "no ReLU": lambda: nn.Sequential(nn.Linear(1, 50), nn.Linear(50, 3)),
    "no batch-norm, no skips": lambda: nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 3)),
    "Sequential": lambda: nn.Bilinear(1, 1, 3),
    "no Linear": lambda: nn.Sequential(nn.Flatten()),
    "starts with": lambda: nn.Sequential(nn.ReLU(), nn.Linear(1, 3)),
    "must be a module": lambda: None,
    "none": lambda: nn.Sequential(
        *[m for _ in range(3) for m in (nn.Linear(1 if _ == 0 else 40, 40, bias=False), nn.ReLU())],
        nn.Linear(40, 3),
    ),
}


@pytest.mark.parametrize("message", list(BAD_MOTHERS))
def test_bad_mothers(message):
    with pytest.raises(ArgumentError, match=message):
        plant(helix(5), BAD_MOTHERS[message]())


def test_bad_mothers_more():
    shared = nn.Linear(4, 4)
    with pytest.raises(ArgumentError, match="twice"):
        plant(relu(4), nn.Sequential(nn.Linear(1, 4), nn.ReLU(), shared, nn.ReLU(), shared))
    broken = mlp([1, 9, 9, 1])
    broken[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ArgumentError, match="finite"):
        plant(relu(4), broken)
    with pytest.raises(ArgumentError, match="groups"):
        plant(relu(3), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 3)))
    with pytest.raises(ArgumentError, match="must agree"):
        plant(relu(3), nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU()))
