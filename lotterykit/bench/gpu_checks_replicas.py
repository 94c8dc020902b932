"""The CUDA replica trainer on a real GPU against the CPU's: each function returns the failures it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lotterykit.nn.models import mlp
from lotterykit.ops.dispatch import missing, use_backend
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunResult, RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining

STEPS = {torch.float64: 60, torch.float32: 10}  # rounding grows with the steps, whoever computes
BOUNDS = {torch.float64: 1e-9, torch.float32: 2e-5}  # of the largest parameter of a tensor
SHAPES = ((2, 100, 100, 100, 4), (1, 1), (3, 21, 17, 4), (784, 60, 30, 10), (5, 300, 280, 3))
DENSITIES = (1.0, 0.6, 0.2, 0.05, 0.01)
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 1e-2, "schedule": "cosine"},
    {"optimizer": "sgd", "lr": 0.02},
    {"optimizer": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-2},
)


def check_replicas(cases: int = 30, *, device: str = "cuda", backend: str = "cuda") -> list[str]:
    """Trainings of random networks: parameters and metrics equal the CPU's, and are bitwise the same in
    any company and order."""
    failures = []
    for case, runs in enumerate(_run_sets(cases)):
        steps = STEPS[runs[0].dtype]
        found = _trained(runs, steps, device, backend)
        expected = _trained(runs, steps, "cpu", "cpu" if missing("cpu") is None else "reference")
        for run, ours, theirs in zip(runs, found, expected, strict=True):
            where = f"replicas {case} {run.layers} {str(run.dtype).removeprefix('torch.')} {run.recipe}"
            failures += [f"{where}: {what}" for what in _differences(ours, theirs, BOUNDS[run.dtype])]
        again = _trained([*runs[::-1], *runs], steps, device, backend)[: len(runs)][::-1]
        if not all(_same(a, b) for a, b in zip(found, again, strict=True)):
            failures.append(f"replicas {case}: results depend on the company")
    return failures


def _run_sets(cases: int) -> Iterator[list[RunSpec]]:
    for case in range(cases):
        dtype = torch.float32 if case % 3 == 2 else torch.float64
        # Adam's first steps are lr * sign(gradient): in float32 a gradient of rounding size has either sign.
        rules = RULES[2:] if dtype == torch.float32 else RULES
        loss = ("cross_entropy", "mse")[int(torch.randint(2, ()))]
        batch, rule = int(torch.randint(1, 150, ())), rules[int(torch.randint(len(rules), ()))]
        recipe = Recipe(loss, epochs=1000, batch_size=batch, **rule)
        layers = SHAPES[case % len(SHAPES)]
        n = int(torch.randint(20, 400, ()))
        runs = [_run(layers, recipe, n, dtype, density) for density in DENSITIES]
        if case % 4 == 3 and dtype == torch.float64:  # in float32 rounding decides between close scores
            runs = [_scored(run, density) for run, density in zip(runs, DENSITIES, strict=True)]
        yield runs


def _run(layers: tuple[int, ...], recipe: Recipe, n: int, dtype: torch.dtype, density: float) -> RunSpec:
    seed = int(torch.randint(2**31, ()))
    x = (torch.randn(n + 50, layers[0]) / layers[0] ** 0.5).to(dtype)
    y: Tensor = torch.randint(layers[-1], (n + 50,))
    if recipe.loss == "mse":
        y = torch.randn(n + 50, layers[-1]).to(dtype)
    weights = mlp(list(layers), seed=seed, dtype=dtype).state_dict()
    kinds = ("weight", "bias") if seed % 2 else ("weight",)
    masks = {k: torch.rand(w.shape) < density for k, w in weights.items() if k.rpartition(".")[2] in kinds}
    return RunSpec(layers, Split(x[:n], y[:n], x[n:], y[n:]), recipe, weights=weights, masks=masks, seed=seed)


def _scored(run: RunSpec, density: float) -> RunSpec:
    """Edge-popup on the same network, its masks left to the scores."""
    scope = ("layer", "global")[run.seed % 2]
    return replace(run, masks=None, scores=ScoreTraining(density=density, scope=scope))


def _trained(runs: Sequence[RunSpec], steps: int, device: str, backend: str) -> list[RunResult]:
    with use_backend(backend, ops=["train_replicas", "train_scores"]):
        return train_replicas(runs, device=device, steps=steps)


def _differences(ours: RunResult, theirs: RunResult, bound: float) -> list[str]:
    found = []
    for kind, got, wanted in (
        ("weights", ours.weights, theirs.weights),
        ("optimizer", ours.optimizer, theirs.optimizer),
        ("scores", ours.scores, theirs.scores),
    ):
        for name, right in wanted.items():
            scale = float(right.abs().max()) or 1.0
            off = float((got[name] - right).abs().max()) / scale
            if not off <= (10 * bound if kind == "optimizer" else bound):
                found.append(f"{kind} {name} are off by {off:.2g} of the largest")
    for name, mask in theirs.masks.items():
        if not torch.equal(ours.masks[name], mask):
            found.append(f"mask {name} differs in {int((ours.masks[name] != mask).sum())} entries")
    for name, value in theirs.metrics.items():
        if not abs(ours.metrics[name] - value) <= max(bound, 1e-6) * (1 + abs(value)):
            found.append(f"{name} is {ours.metrics[name]}, not {value}")
    return found


def _same(one: RunResult, other: RunResult) -> bool:
    pairs = ((one.weights, other.weights), (one.scores, other.scores))
    equal = all(torch.equal(t, b[k]) for a, b in pairs for k, t in a.items())
    return equal and one.curve == other.curve
