"""Replicas for tests of the engines: random networks, data and masks, and what makes two results the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lotterykit.nn.models import mlp
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec
from lotterykit.training.scored import ScoreTraining

RULES = {
    "adam": {},
    "adam decay step": {"weight_decay": 1e-2, "schedule": "step", "milestones": (1, 2)},
    "adam warm-up": {"schedule": "step", "milestones": (30,), "milestone_unit": "steps", "warmup": 20},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "sgd momentum decay cosine": {
        "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "schedule": "cosine",
    },
}  # fmt: skip


def spec(
    layers: tuple[int, ...],
    recipe: Recipe,
    density: float,
    *,
    seed: int = 0,
    n: int = 120,
    dtype: torch.dtype = torch.float64,
    biases: bool = False,
) -> RunSpec:
    """Random data, weights and masks; the pruned entries of the weights hold infinities."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n + 30, layers[0], generator=g, dtype=torch.float64).to(dtype)
    if recipe.loss == "mse":
        y = torch.randn(n + 30, layers[-1], generator=g, dtype=torch.float64).to(dtype)
    else:
        y = torch.randint(0, layers[-1], (n + 30,), generator=g)
    weights = mlp(list(layers), seed=seed, dtype=dtype).state_dict()
    masks = {
        k: torch.rand(w.shape, generator=g) < density for k, w in weights.items() if biases or w.dim() == 2
    }
    weights = {k: torch.where(masks[k], w, torch.inf) if k in masks else w for k, w in weights.items()}
    return RunSpec(layers, Split(x[:n], y[:n], x[n:], y[n:]), recipe, weights=weights, masks=masks, seed=seed)


def assert_same(ours: list, theirs: list, bound: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.curve) == len(b.curve)
        for one, other in zip([a.metrics, *a.curve], [b.metrics, *b.curve], strict=True):
            assert one == pytest.approx(other, rel=max(bound, 1e-6), abs=1e-9)
        assert set(a.optimizer) == set(b.optimizer)
        for name, value in b.weights.items():
            scale = float(value.abs().max()) or 1.0
            assert float((a.weights[name] - value).abs().max()) <= bound * scale, name
        for key, value in b.optimizer.items():
            scale = float(value.abs().max()) or 1.0
            assert float((a.optimizer[key] - value).abs().max()) <= 10 * bound * scale, key


def scored(
    training: ScoreTraining, recipe: Recipe, seed: int, *, ties: bool = False, **kwargs: Any
) -> RunSpec:
    """A network whose scores are trained; `ties`: scores of few values, zeros and both signs."""
    layers = kwargs.pop("layers", (3, 23, 18, 4))
    run = replace(spec(layers, recipe, 1.0, seed=seed, **kwargs), masks=None, scores=training)
    if not ties:
        return run
    g = torch.Generator().manual_seed(seed)
    low = 0 if training.method == "gem-miner" else -2
    names = training.names({k: w.shape for k, w in (run.weights or {}).items()})
    start = {k: torch.randint(low, 3, run.weights[k].shape, generator=g).to(run.dtype) / 2 for k in names}
    return replace(run, scores=replace(training, start=start))


SGD_SCORES = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
SCORINGS = {
    "layer": ScoreTraining(density=0.3),
    "global": ScoreTraining(density=0.05, scope="global"),
    "biases": ScoreTraining(density=0.4, bias=True),
    "annealed": ScoreTraining(density=0.02, anneal=True, scope="global", bias=True),
    "gradual": ScoreTraining(density=0.05, gradual_every=1, scope="global", penalty=1e-2),
    "all": ScoreTraining(density=1.0),
    "none": ScoreTraining(density=1e-6),
    "gem": ScoreTraining("gem-miner", density=0.1, penalty=1e-3, freeze_every=2),
    "gem layer": ScoreTraining("gem-miner", density=0.3, scope="layer", freeze_every=1, bias=True),
    "gem zero": ScoreTraining("gem-miner"),
}
