"""Replicas equal single, step for step; and a replica is bitwise the same in any company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.single import train

LAYERS = {"cross_entropy": (2, 100, 60, 33, 4), "mse": (2, 100, 60, 33, 3)}
SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
DECAYED = {"weight_decay": 1e-3, "schedule": "step", "milestones": (1,)}


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def data(loss: str, seed: int, n: int = 700, dtype: torch.dtype = torch.float32) -> Split:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, generator=g, dtype=torch.float64) * 2 - 1
    square = x.square().sum(1)
    if loss == "mse":
        y = torch.stack([square, x[:, 0] * x[:, 1], x[:, 0]], 1).to(dtype)
    else:
        y = (square > 0.2).long() + (square > 0.5).long() + (square > 0.7).long()
    x = x.to(dtype)
    return Split(x[:-50], y[:-50], x[-50:], y[-50:])


def specs(count: int, recipe: Recipe, dtype: torch.dtype = torch.float32) -> list[RunSpec]:
    """Different networks, data, seeds and masks: dense, .3, .05 and with pruned biases."""
    layers, found = LAYERS[recipe.loss], []
    for r in range(count):
        weights = mlp(list(layers), seed=r, dtype=dtype).state_dict()
        g = torch.Generator().manual_seed(r)
        density = (1.0, 0.3, 0.05, 0.3)[r % 4]
        masks = {
            n: torch.rand(w.shape, generator=g) < density
            for n, w in weights.items()
            if r % 4 == 3 or w.dim() == 2
        }
        found.append(
            RunSpec(layers, data(recipe.loss, r, dtype=dtype), recipe, weights=weights, masks=masks, seed=r)
        )
    return found


def alone(spec: RunSpec, steps: int | None) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    network = mlp(list(spec.layers), dtype=spec.data.x_train.dtype)
    network.load_state_dict(spec.weights or {})
    result = train(network, spec.data, spec.recipe, masks=spec.masks, seed=spec.seed, steps=steps)
    return {name: p.detach() for name, p in network.named_parameters()}, result.curve


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("options", [{}, SGD, DECAYED], ids=["adam", "sgd", "adam-decay"])
@pytest.mark.parametrize(("dtype", "steps", "bound"), [(torch.float64, 50, 1e-11), (torch.float32, 10, 2e-5)])
def test_replicas_equal_single(
    loss: str, options: dict, dtype: torch.dtype, steps: int, bound: float
) -> None:
    """float64 over 50 steps and two epochs; float32 over the first 10, before Adam amplifies rounding:
    its first steps are lr * sign(gradient), so a rounding of 1e-7 in a gradient of 1e-3 moves 1e-4 of lr."""
    runs = specs(5, Recipe(loss, epochs=3, **options), dtype)
    for spec, result in zip(runs, train_replicas(runs, steps=steps), strict=True):
        expected, curve = alone(spec, steps)
        assert result.metrics == result.curve[-1]
        for ours, theirs in zip(result.curve, curve, strict=True):
            assert ours == pytest.approx(theirs, rel=max(bound, 1e-6))
        for name, weight in result.weights.items():
            scale = float(expected[name].abs().max()) or 1.0
            assert float((weight - expected[name]).abs().max()) <= bound * scale, name


def test_every_step_matters() -> None:
    """The comparison above would see a trainer that is one step off."""
    runs = specs(1, Recipe("mse", epochs=3), torch.float64)
    found, expected = train_replicas(runs, steps=11)[0].weights, alone(runs[0], 10)[0]
    assert float((found["0.weight"] - expected["0.weight"]).abs().max()) > 1e-5


def test_bitwise_in_any_company(threads: int) -> None:
    runs = specs(19, Recipe("cross_entropy", epochs=1))
    torch.set_num_threads(1)
    together = train_replicas(runs)
    torch.set_num_threads(threads)
    for members in ([0], [18], [7, 3, 0], list(range(18, -1, -1)), list(range(4, 19))):
        for i, result in zip(members, train_replicas([runs[i] for i in members]), strict=True):
            assert result.curve == together[i].curve
            for name, weight in result.weights.items():
                assert torch.equal(weight, together[i].weights[name]), (members, i, name)


def test_threads_are_given_back(threads: int) -> None:
    train_replicas(specs(1, Recipe("mse", epochs=1)), steps=1)
    assert torch.get_num_threads() == threads


def test_pruned_weights_stay_zero_and_results_come_in_order() -> None:
    runs = specs(4, Recipe("mse", epochs=1, **SGD)) + specs(4, Recipe("mse", epochs=2))
    seen = []
    results = train_replicas(runs, progress=seen.append)
    assert sum(seen) == 4 * 1 + 4 * 2
    for spec, result in zip(runs, results, strict=True):
        assert len(result.curve) == spec.recipe.epochs
        assert result.metrics == result.curve[-1]
        for name, mask in (spec.masks or {}).items():
            assert not result.weights[name][~mask].any()


def test_the_optimizer_goes_on() -> None:
    """Two epochs in one run, and one after the other with the state handed on, agree when the order of
    the batches does: here one batch holds all samples."""
    n = len(specs(1, Recipe("mse"))[0].data.x_train)
    whole = specs(2, Recipe("mse", epochs=2, batch_size=n), torch.float64)
    half = specs(2, Recipe("mse", epochs=1, batch_size=n), torch.float64)
    first = train_replicas(half)
    second = train_replicas(
        [
            RunSpec(
                s.layers,
                s.data,
                s.recipe,
                weights=r.weights,
                masks=s.masks,
                seed=s.seed,
                optimizer=r.optimizer,
            )
            for s, r in zip(half, first, strict=True)
        ]
    )
    for a, b in zip(train_replicas(whole), second, strict=True):
        assert torch.allclose(a.weights["2.weight"], b.weights["2.weight"], rtol=1e-9, atol=1e-12)


def test_no_epochs_evaluates() -> None:
    (result,) = train_replicas(specs(1, Recipe("mse", epochs=0)))
    assert result.curve == []
    assert result.metrics["mse"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (2,)}, "at least 2"),
        ({"layers": (3, 100, 60, 33, 4)}, "0.weight"),
        ({"masks": {"1.weight": torch.ones(1, 1, dtype=torch.bool)}}, "no such name"),
        ({"masks": {"0.bias": torch.ones(100)}}, "bool"),
        ({"seed": -1}, "seed"),
        ({"data": data("mse", 0)}, r"y_train must be \['N'\] of torch.int64"),
        ({"data": data("cross_entropy", 0, dtype=torch.float64)}, "x_train must be .* of torch.float32"),
        ({"recipe": Recipe("mse"), "data": Split(*[torch.ones(5, 2), torch.ones(5)] * 2)}, r"\['N', 4\]"),
        ({"weights": {}}, "lack"),
        ({"data": Split(torch.ones(3, 2), torch.ones(2), torch.ones(1, 2), torch.ones(1))}, "as many"),
    ],
)
def test_bad_specs(change: dict, message: str) -> None:
    (spec,) = specs(1, Recipe("cross_entropy"))
    fields = {**{f: getattr(spec, f) for f in spec.__dataclass_fields__}, **change}
    with pytest.raises(ArgumentError, match=message):
        train_replicas([RunSpec(**fields)])
