"""All rounds of SynFlow at once keep what single steps keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import prunable_layers
from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.pruning.prune import Pruner, prune_
from lotterykit.pruning.rounds import synflow_rounds

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))


def stepped(model: nn.Module, **options) -> Pruner:
    pruner = Pruner(model, "synflow", **options)
    for _ in range(options["rounds"]):
        pruner.step()
    return pruner


def both_agree(model: nn.Module, **options) -> Pruner:
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    expected, found = stepped(one, **options), Pruner(other, "synflow", **options)
    masks = found.run()
    want, got = one.state_dict(), other.state_dict()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert all(torch.equal(masks[name], want[f"{name}_mask"]) for name in masks)
    assert found.history == expected.history
    return found


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_chain(scope: str, bias: bool) -> None:
    for seed in range(3):
        model = mlp([3, 17, 12, 4], seed=seed)
        prune_(model, "random", density=0.9, seed=seed)
        both_agree(model, density=0.1, rounds=7, scope=scope, options={"bias": bias}, seed=seed)


def test_a_chain_that_begins_with_flatten_and_collapses() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 3), nn.Dropout(), nn.Sequential(nn.ReLU(), nn.Linear(3, 2))
    )
    pruner = both_agree(model, density=0.04, rounds=3, example_input=torch.zeros(1, 2, 4))
    assert pruner.history[-1].no_live_path


def test_the_rest_of_the_rounds() -> None:
    model = mlp([3, 17, 12, 4], seed=1)
    other = copy.deepcopy(model)
    pruner, expected = Pruner(model, "synflow", density=0.1, rounds=5), stepped(other, density=0.1, rounds=5)
    pruner.step()
    pruner.run()
    assert pruner.history == expected.history
    assert torch.equal(model[2].weight_mask, other[2].weight_mask)
    pruner.run()  # nothing is left to do
    assert len(pruner.history) == 5


class Residual(nn.Module):
    """Two convolutions with batch-norm around a skip, one of them strided and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.down = nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding="valid")
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.pool(x + self.second(x))
        return self.head(self.down(x).mean((2, 3)))


def conv_nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    return {
        "vgg": (
            nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
                nn.Conv2d(6, 5, 1, bias=False), nn.ReLU(), *tail,
            ),
            (1, 3, 12, 11),
        ),
        "residual": (Residual(), (1, 3, 14, 15)),
        "padding modes": (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=2, padding_mode="circular"), nn.ReLU(),
                nn.Conv2d(4, 5, (1, 4), padding="same", padding_mode="reflect"), *tail,
            ),
            (1, 2, 9, 9),
        ),
        "conv1d": (
            nn.Sequential(
                nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 5, stride=2), nn.Flatten(),
                nn.Linear(28, 2),
            ),
            (1, 2, 17),
        ),
        "linear on positions": (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (1, 5, 4)),
        "conv3d": (nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 2)), (1, 1, 3, 3, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("name", conv_nets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_networks(name: str, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, shape = conv_nets()[name]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    model = model.to(dtype).train()
    example = torch.zeros(2, *shape[1:], dtype=dtype)
    for bias in (True, False):
        for scope in ("global", "local"):
            options = {"rounds": 4, "example_input": example, "options": {"bias": bias}, "seed": 2}
            both_agree(model, density=0.2, scope=scope, **options)
    assert all(module.training for module in model.modules())


@needs_native
def test_convolutions_take_native_products_and_leave_the_model_as_it_is() -> None:
    for name, (model, shape) in conv_nets().items():
        before = copy.deepcopy(model.state_dict())
        names = [f"{prefix}weight" for prefix, _ in prunable_layers(model)]
        outcome = synflow_rounds(model, [[(names, 9, 1)]], torch.zeros(shape), bias=True)
        assert (outcome is None) == (name == "conv3d")
        assert outcome is None or sum(outcome.kept[0].values()) == 9
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_networks_that_only_autograd_knows() -> None:
    twice = nn.Linear(4, 4)
    shared = nn.Sequential(twice, nn.ReLU(), twice, nn.Tanh(), nn.Linear(4, 2))
    both_agree(shared, density=0.3, rounds=3)
    huge = nn.Sequential(*[nn.Linear(1, 1) for _ in range(9)], nn.LeakyReLU())
    for layer in huge[:-1]:
        nn.init.constant_(layer.weight, 1e38)
    with pytest.raises(ArgumentError, match="overflow"):
        prune_(huge, "synflow", density=0.5, rounds=2)
    broken = mlp([3, 5, 2], seed=1)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(ArgumentError, match="NaN"):
        prune_(broken, "synflow", density=0.5)
    assert type(broken[0]) is nn.Linear or bool(broken[0].weight_mask.all())
    with pytest.raises(ArgumentError, match="option of synflow"):
        prune_(mlp([3, 5, 2]), "synflow", density=0.5, options={"biass": True})
