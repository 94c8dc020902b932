"""Training steps of many small networks: `replicas` trains weights under a mask, `scores` by edge-popup.

Every peer runs in the setting's dtype; it is admitted if, in float64, its parameters after the first steps
are those of the plain batched engine, because float32 rounding grows with the steps whoever computes.
Times are those of one step of one replica. Ours and the batched engine take all replicas in one call, their
share of Python and the evaluation of 32 samples included; orders of batches are kept from call to call, as
in a sweep. The eager loop trains the first replica alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.contender import Contender
from lotterykit.bench.setting import DTYPES, Problem, Setting
from lotterykit.nn.models import mlp
from lotterykit.ops.dispatch import use_backend
from lotterykit.training.recipe import Recipe, Split, batch_order
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining, initial_scores

BATCH = 32
CHECKED_STEPS, CHECKED_REPLICAS = 20, 2
INPUTS, CLASSES = 2, 4
RADII = (0.2, 0.5, 0.7)  # squared radii between the classes of Plant 'n' Seek's Circle
# Neurons of each layer of the planted Circle of depth 5, and how many of the layer before each of them reads
TICKET = ((4, 1), (2, 2), (20, 1), (4, 20))
TICKET_BIASES = (0, 0, 18, 4)  # how many of a layer's planted neurons use their bias


@dataclass(frozen=True)
class Training:
    """One epoch of each of `specs`, in the setting's dtype; `checked`: the first of them in float64."""

    specs: list[RunSpec]
    checked: list[RunSpec]
    steps: int


def replicas_problem(setting: Setting) -> Problem:
    """Weights trained under random masks, or under those of a planted ticket's shape ("ticket")."""
    width = setting.shape[1]

    def masks(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if setting.work == "ticket":
            return ticket_masks(width, generator)
        shapes = {name: p.shape for name, p in mlp(_layers(width)).named_parameters() if p.dim() == 2}
        return {k: torch.rand(s, generator=generator) < setting.density for k, s in shapes.items()}

    return _problem(setting, lambda spec: replace(spec, masks=masks(spec.seed)))


def scores_problem(setting: Setting) -> Problem:
    """Scores trained by edge-popup, the `density` share of each layer kept in every step."""
    training = ScoreTraining("edge-popup", density=setting.density)
    return _problem(setting, lambda spec: replace(spec, scores=training))


def ticket_masks(width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Masks of weights and biases of the Circle ticket's shape at random places of networks 2-w-w-w-4."""
    masks: dict[str, Tensor] = {}
    layers, live = _layers(width), torch.arange(INPUTS)
    for i, (neurons, reads) in enumerate(TICKET):
        mask = torch.zeros(layers[i + 1], layers[i], dtype=torch.bool)
        chosen = torch.randperm(layers[i + 1], generator=generator)[:neurons]
        for place, row in enumerate(chosen):
            mask[row, live.roll(-place * reads)[:reads]] = True
        bias = torch.zeros(layers[i + 1], dtype=torch.bool)
        bias[chosen[: TICKET_BIASES[i]]] = True
        masks |= {f"{2 * i}.weight": mask, f"{2 * i}.bias": bias}
        live = chosen
    return masks


def ticket_density(shape: tuple[int, ...]) -> float:
    """Kept / total weights of `ticket_masks` in networks of this shape."""
    found = [m for m in ticket_masks(shape[1], torch.Generator()).values() if m.dim() == 2]
    return sum(int(m.sum()) for m in found) / sum(m.numel() for m in found)


def native_training(problem: Problem) -> Contender:
    """Ours: all replicas in one call of `train_replicas`, which is also the way of the batched engine."""
    training: Training = problem.inputs

    def outputs(results: Any) -> tuple[Tensor, ...]:
        trained = train_replicas(training.checked, steps=CHECKED_STEPS)
        return (*_flat(results[0]), *(t for result in trained for t in _flat(result)))

    steps = training.steps * len(training.specs)
    return Contender(lambda: train_replicas(training.specs), outputs, steps)


def eager_training(problem: Problem) -> Contender:
    """The plain loop of published code, with the fused optimizer that little of it uses; on scores each
    layer is sorted, and the gradient passes straight through (Ramanujan et al. 2020, their code)."""
    training: Training = problem.inputs
    loop = _eager if training.specs[0].scores is None else _eager_scores

    def outputs(first: list[Tensor]) -> tuple[Tensor, ...]:
        return (*first, *(t for spec in training.checked for t in loop(spec, CHECKED_STEPS)))

    return Contender(lambda: loop(training.specs[0], training.steps), outputs, training.steps)


def _layers(width: int) -> list[int]:
    return [INPUTS, width, width, width, CLASSES]


def _problem(setting: Setting, finish: Callable[[RunSpec], RunSpec]) -> Problem:
    """The specs of a setting, of which `finish` makes the op's own."""
    replicas, width, steps = setting.shape
    split = _circle(steps * BATCH, DTYPES[setting.dtype])
    recipe = Recipe("cross_entropy", epochs=1, batch_size=BATCH)

    def spec_of(seed: int, split: Split, dtype: torch.dtype) -> RunSpec:
        weights = {k: p.to(dtype) for k, p in mlp(_layers(width), seed=seed).state_dict().items()}
        return finish(RunSpec(tuple(_layers(width)), split, recipe, weights=weights, seed=seed))

    specs = [spec_of(seed, split, DTYPES[setting.dtype]) for seed in range(replicas)]
    wide = _circle(steps * BATCH, torch.float64)
    checked = [spec_of(seed, wide, torch.float64) for seed in range(min(replicas, CHECKED_REPLICAS))]
    training = Training(specs, checked, steps)
    with use_backend("reference", ops=["train_replicas", "train_scores"]):
        results = train_replicas(checked, steps=CHECKED_STEPS)
    expected = [tensor for result in results for tensor in _flat(result)]
    return Problem(setting, training, lambda outputs: _wrong(outputs, expected), 0.0, 0.0)


def _wrong(outputs: tuple[Tensor, ...], expected: list[Tensor]) -> str | None:
    """outputs: what the first replica's timed training left, then the checked steps' parameters."""
    timed, found = outputs[: -len(expected)], outputs[-len(expected) :]
    if not timed or not all(bool(tensor.isfinite().all()) for tensor in timed):
        return "training leaves infinities or NaN"
    for number, (got, right) in enumerate(zip(found, expected, strict=True)):
        if got.shape != right.shape or not torch.allclose(got, right, rtol=1e-7, atol=1e-9):
            return f"parameter {number} differs from the batched engine's after {CHECKED_STEPS} steps"
    return None


def _flat(result: Any) -> list[Tensor]:
    """What was trained, in the order of the network: scores where there are any."""
    return list((result.scores or result.weights).values())


def _circle(samples: int, dtype: torch.dtype) -> Split:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(samples + BATCH, INPUTS, generator=generator, dtype=torch.float64) - 1
    y = torch.bucketize(x.square().sum(1), torch.tensor(RADII, dtype=torch.float64))
    x = x.float().to(dtype)
    return Split(x[:samples], y[:samples], x[samples:], y[samples:])


def _eager(spec: RunSpec, steps: int) -> list[Tensor]:
    parameters = {name: w.clone().requires_grad_() for name, w in (spec.weights or {}).items()}
    masks = {k: m.to(spec.dtype) for k, m in (spec.masks or {}).items() if not m.all()}

    def network(x: Tensor) -> Tensor:
        return _forward(x, {k: p * masks[k] if k in masks else p for k, p in parameters.items()})

    _loop(spec, list(parameters.values()), network, steps)
    return [p.detach() * masks[k] if k in masks else p.detach() for k, p in parameters.items()]


def _eager_scores(spec: RunSpec, steps: int) -> list[Tensor]:
    weights, training = dict(spec.weights or {}), spec.scores
    if training is None or training.density is None:
        raise TypeError("a spec without scores")
    start = initial_scores(training, {k: w.shape for k, w in weights.items()}, spec.seed, spec.dtype)
    scores = {name: s.requires_grad_() for name, s in start.items()}
    pruned = {name: s.numel() - round(training.density * s.numel()) for name, s in scores.items()}

    def network(x: Tensor) -> Tensor:
        chosen = {k: weights[k] * _Highest.apply(s.abs(), pruned[k]) for k, s in scores.items()}
        return _forward(x, {k: chosen.get(k, w) for k, w in weights.items()})

    _loop(spec, list(scores.values()), network, steps)
    return [s.detach() for s in scores.values()]


class _Highest(torch.autograd.Function):
    """1 where scores are not among the `pruned` lowest, by sorting; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, pruned: int) -> Tensor:
        mask = torch.ones_like(scores)
        _, order = scores.flatten().sort()
        mask.view(-1)[order[:pruned]] = 0
        return mask

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g, None


def _forward(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    names = list(parameters)
    for weight, bias in zip(names[0::2], names[1::2], strict=True):
        x = F.linear(x, parameters[weight], parameters[bias])
        x = x if weight == names[-2] else x.relu()
    return x


def _loop(spec: RunSpec, trained: list[Tensor], network: Callable[[Tensor], Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(trained, spec.recipe.lr, fused=True)
    order = batch_order(len(spec.data.x_train), spec.seed, 0)
    for chosen in order.split(BATCH)[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(network(spec.data.x_train[chosen]), spec.data.y_train[chosen]).backward()
        optimizer.step()
