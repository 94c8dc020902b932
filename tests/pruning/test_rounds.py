"""All rounds of SynFlow at once keep what single steps keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.pruning.prune import Pruner, prune_

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
