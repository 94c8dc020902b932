"""Evaluations between epochs, validation data, and the early-stopping iteration that they give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import MOST, Recipe, Split, early_stop
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.single import train

ENGINES = ["reference"] + (["cpu"] if dispatch.missing("cpu") is None else [])
TRAIN = 70  # 5 batches of 16 an epoch, the last one short


def run(loss: str, every: int | None, *, scores: ScoreTraining | None = None, seed: int = 0) -> RunSpec:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(TRAIN + 40, 3, generator=g, dtype=torch.float64)
    y = (
        torch.randint(0, 4, (len(x),), generator=g)
        if loss == "cross_entropy"
        else x @ torch.randn(3, 4, generator=g, dtype=torch.float64)
    )
    weights = mlp([3, 20, 11, 4], seed=seed, dtype=torch.float64).state_dict()
    masks = {k: torch.rand(w.shape, generator=g) < 0.4 for k, w in weights.items() if w.dim() == 2}
    recipe = Recipe(loss, epochs=3, batch_size=16, lr=0.02, evaluate_every=every)
    data = Split(x[:TRAIN], y[:TRAIN], x[TRAIN:-13], y[TRAIN:-13])
    return RunSpec(
        (3, 20, 11, 4), data, recipe, weights=weights, masks=None if scores else masks, seed=seed,
        scores=scores, validation=(x[-13:], y[-13:]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("every", "steps", "after"),
    [
        (None, None, [5, 10, 15]),
        (None, 12, [5, 10, 12]),
        (1, 4, [1, 2, 3, 4]),
        (3, None, [3, 6, 9, 12, 15]),
        (4, None, [4, 8, 12, 15]),
        (4, 9, [4, 8, 9]),
        (100, None, [15]),
        (7, 0, []),
        (5, 100, [5, 10, 15]),
    ],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_evaluates_when_asked_on_every_trainer(
    every: int | None, steps: int | None, after: list[int], loss: str
) -> None:
    spec = run(loss, every)
    network = mlp([3, 20, 11, 4], dtype=torch.float64)
    network.load_state_dict(dict(spec.weights or {}))
    alone = train(network, spec.data, spec.recipe, masks=spec.masks, validation=spec.validation, steps=steps)
    assert alone.steps == after
    assert len(alone.curve) == len(alone.validation) == len(after)
    for engine in ENGINES:
        with use_backend(engine, ops=["train_replicas"]):
            (result,) = train_replicas([spec], steps=steps)
        assert result.steps == after
        for ours, theirs in zip(
            [result.metrics, *result.curve, *result.validation],
            [alone.metrics, *alone.curve, *alone.validation],
            strict=True,
        ):
            assert ours == pytest.approx(theirs, rel=1e-9)
        if after:
            assert result.early_stop().step == alone.early_stop().step


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "scores",
    [None, ScoreTraining(density=0.3, anneal=True), ScoreTraining("gem-miner", density=0.1, freeze_every=1)],
    ids=["weights", "edge-popup", "gem-miner"],
)
def test_evaluating_changes_nothing(engine: str, scores: ScoreTraining | None) -> None:
    """Bitwise the same weights, scores and metrics, however often one looks, validation data or not."""
    specs = [run("cross_entropy", every, scores=scores, seed=3) for every in (None, 1, 4)]
    specs.append(replace(specs[2], validation=None))
    with use_backend(engine, ops=["train_replicas", "train_scores"]):
        plain, *others = train_replicas(specs)
    for other in others:
        assert other.metrics == plain.metrics
        assert all(torch.equal(other.weights[k], w) for k, w in plain.weights.items())
        assert all(torch.equal(other.scores[k], s) for k, s in plain.scores.items())
        assert all(torch.equal(other.masks[k], m) for k, m in plain.masks.items())
    assert others[0].steps == list(range(1, 16))
    assert others[0].curve[3] == others[1].curve[0]
    assert len(others[1].validation) == 4
    assert others[2].validation == []


def test_the_least_validation_loss_stops() -> None:
    tests = [{"loss": float(i), "accuracy": i / 10} for i in range(5)]
    losses = [math.nan, 0.5, 0.25, 0.25, 0.75]
    found = early_stop([10, 20, 30, 40, 50], [{"loss": v} for v in losses], tests)
    assert (found.step, found.validation, found.metrics) == (30, {"loss": 0.25}, tests[2])
    assert early_stop([10, 20], [{"loss": math.nan}] * 2, tests[:2]).step == 10


def test_early_stopping_needs_validation() -> None:
    (result,) = train_replicas([replace(run("mse", 2), validation=None)])
    with pytest.raises(ArgumentError, match="needs validation data"):
        result.early_stop()


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "5", MOST + 1])
def test_bad_evaluate_every(every: object) -> None:
    with pytest.raises(ArgumentError, match="evaluate_every must be None or an int of at least 1"):
        Recipe("mse", evaluate_every=every)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((torch.ones(3, 3), torch.ones(2, 4)), "as many inputs as targets, got 3 and 2"),
        ((torch.ones(0, 3), torch.ones(0, 4)), "as many inputs as targets, got 0 and 0"),
        ((torch.ones(3, 3),), "two tensors"),
        (("x", "y"), "two tensors"),
        (5, "two tensors, x and y, got 5"),
        ((torch.ones(3, 2).double(), torch.ones(3, 4).double()), r"x of validation must be \['N', 3\]"),
        ((torch.ones(3, 3), torch.ones(3, 4)), r"x of validation must be .* of torch.float64"),
        ((torch.ones(3, 3).double(), torch.ones(3, 1).double()), r"y of validation must be \['N', 4\]"),
        ((torch.ones(3, 3).double().to_sparse(), torch.ones(3, 4).double()), "dense tensor with data"),
    ],
)
def test_bad_validation(validation: tuple, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        train_replicas([replace(run("mse", None), validation=validation)])


def test_validation_classes_out_of_range() -> None:
    spec = run("cross_entropy", None)
    x, y = spec.validation or ()
    with pytest.raises(ArgumentError, match=r"y of validation must hold classes in \[0, 4\)"):
        train_replicas([replace(spec, validation=(x, y + 4))])
