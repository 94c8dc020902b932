"""`prune_` and `Pruner`: exact counts, monotone masks, collapse seen, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp
from lotterykit.pruning.prune import Pruner, prune_
from lotterykit.pruning.schedules import SCHEDULES
from lotterykit.pruning.scores import SCORES

CE = nn.functional.cross_entropy


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(30, 3, generator=g), torch.randint(4, (30,), generator=g))]


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("density", [1.0, 0.37, 0.02])
def test_exact_counts(method: str, scope: str, rounds: int, density: float) -> None:
    model = mlp([3, 31, 17, 4], seed=2)
    masks = prune_(
        model, method, density=density, scope=scope, rounds=rounds, data=batches(), loss_fn=CE, seed=3
    )
    counts = list(masks.counts().values())
    if scope == "local":
        assert [kept for kept, _ in counts] == [round(density * total) for _, total in counts]
    assert sum(kept for kept, _ in counts) == (
        sum(round(density * t) for _, t in counts)
        if scope == "local"
        else round(density * sum(t for _, t in counts))
    )
    carried = Masks.from_model(model)
    assert all(torch.equal(carried[name], masks[name]) for name in masks)


def test_constant_weights_keep_exactly_as_many_spread_over_the_layers() -> None:
    """open_lth keeps 0 of such a network, jaxpruner the first in index order."""
    model = mlp([10, 50, 50, 10], init="signed_constant", seed=0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 0.1)
    masks = prune_(model, "magnitude", density=0.1, seed=7)
    assert sum(kept for kept, _ in masks.counts().values()) == 350
    assert all(0.05 < density < 0.15 for density in masks.per_layer().values())
    other = prune_(mlp([10, 50, 50, 10], init="signed_constant", seed=0), "magnitude", density=0.1, seed=8)
    assert not torch.equal(masks["2.weight"], other["2.weight"])


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_are_monotone(method: str, schedule: str) -> None:
    model = mlp([3, 20, 20, 4], seed=0)
    pruner = Pruner(
        model, method, density=0.05, rounds=6, schedule=schedule, data=batches(), loss_fn=CE, seed=1
    )
    before = Masks.from_model(model)
    for number in range(1, 7):
        masks = pruner.step()
        assert not any(bool((masks[name] & ~before[name]).any()) for name in masks)
        with torch.no_grad():  # even where the weights change in between
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        before = masks
    assert pruner.history[-1].density == pytest.approx(masks.density())
    with pytest.raises(ArgumentError, match="6 rounds are done"):
        pruner.step()


def test_synflow_takes_100_rounds_by_default_and_avoids_collapse() -> None:
    one, many = mlp([3, 40, 40, 40, 4], seed=0), mlp([3, 40, 40, 40, 4], seed=0)
    bias = {"bias": False}
    single = prune_(one, "synflow", density=0.01, rounds=1, options=bias)
    hundred = prune_(many, "synflow", density=0.01, options=bias)
    again = prune_(mlp([3, 40, 40, 40, 4], seed=0), "synflow", density=0.01, rounds=100, options=bias)
    assert all(torch.equal(hundred[name], again[name]) for name in again)
    assert not all(torch.equal(single[name], hundred[name]) for name in single)
    assert min(kept for kept, _ in hundred.counts().values()) > 0
    assert any(bool(mask.any()) for mask in hundred.live().values())


def test_collapse_is_reported_not_raised() -> None:
    model = mlp([3, 30, 30, 4], seed=0)
    with torch.no_grad():
        model[2].weight *= 1e-6
    pruner = Pruner(model, "magnitude", density=0.05, rounds=2)
    pruner.step()
    pruner.step()
    assert [r.empty_layers for r in pruner.history] == [(), ("2.weight",)]
    assert [r.no_live_path for r in pruner.history] == [False, True]
    broken = mlp([2, 2, 1], seed=0)  # nothing empty, and yet no path
    masks = {
        "0.weight": torch.tensor([[True, True], [False, False]]),
        "2.weight": torch.tensor([[False, True]]),
    }
    scores = {name: mask.float() for name, mask in masks.items()}
    pruner = Pruner(broken, lambda model, data, loss_fn: scores, density=0.5)
    pruner.step()
    assert pruner.history[0].empty_layers == ()
    assert pruner.history[0].no_live_path is True


def test_biases_compete_only_when_asked() -> None:
    model = mlp([3, 20, 4], seed=0)
    assert set(prune_(model, "magnitude", density=0.5)) == {"0.weight", "2.weight"}
    model = mlp([3, 20, 4], seed=0)
    masks = prune_(model, "magnitude", density=0.5, prune_bias=True)
    assert set(masks) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert sum(kept for kept, _ in masks.counts().values()) == round(0.5 * (60 + 20 + 80 + 4))
    x = torch.randn(5, 3)
    hidden = (x @ (model[0].weight * masks["0.weight"]).T + model[0].bias * masks["0.bias"]).relu()
    expected = hidden @ (model[2].weight * masks["2.weight"]).T + model[2].bias * masks["2.bias"]
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_starts_from_the_masks_a_model_has() -> None:
    model = mlp([3, 30, 4], seed=0)
    first = prune_(model, "random", density=0.5)
    second = prune_(model, "magnitude", density=0.25, rounds=3)
    assert not any(bool((second[name] & ~first[name]).any()) for name in second)
    with pytest.raises(ArgumentError, match="monotone"):
        prune_(model, "magnitude", density=0.4)


def test_nan_scores_leave_the_masks() -> None:
    model = mlp([3, 30, 4], seed=0)
    before = prune_(model, "random", density=0.5)
    calls = []

    def spoiled(model: nn.Module, data, loss_fn) -> dict[str, torch.Tensor]:
        found = {n: p.detach().abs() for n, p in model.named_parameters()}
        calls.append(1)
        if len(calls) == 2:
            found["2.weight"][before["2.weight"].nonzero()[0].tolist()[0]] = float("nan")
        return found

    with pytest.raises(ArgumentError, match="NaN"):
        prune_(model, spoiled, density=0.1, rounds=3)
    assert len(calls) == 2
    after = Masks.from_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("magnitude", {"density": 0.0}, r"\(0, 1\]"),
        ("magnitude", {"density": 1.5}, r"\(0, 1\]"),
        ("magnitude", {"density": True}, "number"),
        ("magnitude", {"density": 0.5, "scope": "layer"}, "valid|Valid"),
        ("magnitude", {"density": 0.5, "schedule": "exp"}, "exponential"),
        ("magnitude", {"density": 0.5, "rounds": 0}, "rounds"),
        ("taylor", {"density": 0.5}, "unknown method"),
        ("snip", {"density": 0.5, "rounds": 2, "data": iter([]), "loss_fn": CE}, "one-shot"),
    ],
)
def test_bad_calls_change_nothing(method: str, kwargs: dict, message: str) -> None:
    model = mlp([3, 5, 4], seed=0)
    with pytest.raises(ArgumentError, match=message):
        prune_(model, method, **kwargs)
    assert type(model[0]) is nn.Linear


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + y


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 4)),
        TwoInputs,
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)),
    ],
    ids=["embedding", "unflatten", "two inputs", "layer norm", "layer norm inside", "softmax"],
)
def test_models_that_the_probe_cannot_read_are_pruned_all_the_same(make: Callable[[], nn.Module]) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        pruner = Pruner(make(), "magnitude", density=0.5)
        masks = pruner.step()
        assert masks.density() == pytest.approx(0.5, abs=0.05)
        assert pruner.history[0].no_live_path is None, seed


def test_the_density_a_mask_was_rounded_to_can_be_asked_for_again() -> None:
    for density in (0.3, 0.55, 0.97):
        model = mlp([3, 31, 17, 4], seed=0)
        first = prune_(model, "magnitude", density=density)
        again = prune_(model, "magnitude", density=density)
        assert all(torch.equal(first[name], again[name]) for name in first)
    for scope in ("global", "local"):
        model = mlp([1, 30, 30, 1], seed=0)
        for r in range(1, 11):
            prune_(model, "magnitude", density=0.95 ** (r / 10), scope=scope)


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ArgumentError, match="'0' and '1' share one weight"):
        prune_(model, "magnitude", density=0.5)


def test_pruning_without_data_leaves_the_global_generator() -> None:
    dataset = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    prune_(mlp([3, 9, 4], seed=0), "magnitude", density=0.5, data=loader, loss_fn=CE)
    assert torch.equal(torch.get_rng_state(), before)
