"""Prune a network: score + scope or allocation + schedule + exact count."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name
from lotterykit.mask import Masks, prunable_layers, sparse_layers
from lotterykit.nn.convert import convert_
from lotterykit.ops.guess import Guess
from lotterykit.ops.synflow_masks import rounded
from lotterykit.ops.topk_mask import topk_mask
from lotterykit.pruning.allocation import Allocation, Course, layer_courses
from lotterykit.pruning.flow import live_weights
from lotterykit.pruning.rounds import synflow_rounds
from lotterykit.pruning.schedules import SCHEDULES, density_after
from lotterykit.pruning.scores import SCORES, Batches, LossFn, ScoreFn, Scoring, scores

SCOPES = ("global", "local")
DEFAULT_ROUNDS = {"synflow": 100}  # Tanaka et al.; every other method scores once


@dataclass(frozen=True)
class Round:
    """What one round left: density over the pruned set; `empty_layers`: weights with nothing kept;
    `no_live_path`: no kept path from input to output (None where that cannot be told: the input's shape is
    unknown, or the model is more than sums of products)."""

    round: int
    density: float
    empty_layers: tuple[str, ...]
    no_live_path: bool | None


class Pruner:
    """The rounds of `prune_` one at a time, inside your own training loop; arguments as there.

    `step()` scores the model as it stands and prunes it to the schedule's next density; `history` holds a
    `Round` per step, so layer collapse is seen when it happens. A step makes sparse layers masked: an
    optimizer that trains them must go through `convert_(model, optimizer=...)` before.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | ScoreFn,
        *,
        density: float,
        rounds: int = 1,
        schedule: str = "exponential",
        scope: str | None = None,
        allocation: Allocation | None = None,
        data: Batches | None = None,
        loss_fn: LossFn | None = None,
        example_input: Tensor | None = None,
        options: Mapping[str, Any] | None = None,
        invert: bool = False,
        prune_bias: bool = False,
        seed: int = 0,
    ) -> None:
        scope = _scope(scope, allocation, prune_bias)
        if schedule not in SCHEDULES:
            raise unknown_name("schedule", schedule, SCHEDULES)
        if isinstance(method, str) and method not in SCORES:
            raise unknown_name("method", method, SCORES)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ArgumentError(f"rounds must be an int >= 1, got {rounds!r}")
        if rounds > 1 and isinstance(data, Iterator):
            raise ArgumentError(f"data is a one-shot iterator, and {rounds} rounds read it more than once")
        self.model, self.method, self.scope = model, method, scope
        self.density, self.rounds, self.schedule = check_density(density), rounds, schedule
        self.scoring: dict[str, Any] = {
            "data": data, "loss_fn": loss_fn, "example_input": example_input, "options": options,
            "invert": invert, "prune_bias": prune_bias,
        }  # fmt: skip
        self.prune_bias, self.seed = prune_bias, check_seed(seed)
        carried = _competing(model, prune_bias)
        self.start = carried.density(biases=True)
        self.courses: dict[str, Course] | None = None
        if allocation is not None:
            self.courses = layer_courses(model, carried, allocation, self.density)
        for group in _groups(carried, scope) if self.courses is None else ():
            kept, total = (sum(column) for column in zip(*(carried.counts()[n] for n in group), strict=True))
            if round(self.density * total) > kept:
                raise ArgumentError(
                    f"masks are monotone: density {density:g} was asked, but only {kept} of {total} "
                    f"weights are left in {group[0] if scope == 'local' else 'the model'}"
                )
        self._input = example_input
        self._rounded = isinstance(method, str) and SCORES[method].rounded
        self.history: list[Round] = []
        self._guesses: dict[str, Guess] = {}  # by the first name of a group

    def step(self) -> Masks:
        """Score, prune to the next density of the schedule, and return the masks.

        Raises `ArgumentError` on NaN scores, and after the last round; the model then stays as it is."""
        number = len(self.history) + 1
        if number > self.rounds:
            raise ArgumentError(f"all {self.rounds} rounds are done")
        sparse = {id(layer) for _, layer in sparse_layers(self.model)}
        convert_(self.model, filter_fn=lambda _, layer: id(layer) in sparse)
        found = scores(self.model, self.method, seed=self.seed, **self.scoring)
        before = _competing(self.model, self.prune_bias)
        masks = self._select(found, before, number)
        convert_(self.model, masks=masks)
        self.history.append(self._report(masks, number))
        return masks

    def run(self) -> Masks:
        """All steps that are left, and the masks they leave.

        SynFlow reads nothing but the network, so its rounds run in one call where `synflow_rounds` knows it.
        """
        masks = _competing(self.model, self.prune_bias)
        if self.method == "synflow" and not self.scoring["invert"] and not self.prune_bias:
            masks = self._synflow(masks)
        while len(self.history) < self.rounds:
            masks = self.step()
        return masks

    def _synflow(self, before: Masks) -> Masks:
        """All rounds of SynFlow at once, or none of them."""
        options = dict(self.scoring["options"] or {})
        if self.rounds - len(self.history) < 2 or not set(options) <= {"bias"}:
            return before
        scoring = Scoring(self.model, list(before), self.scoring["data"], example_input=self._input)
        counts = before.counts()
        plan = [self._counts(number, counts) for number in range(len(self.history) + 1, self.rounds + 1)]
        bias = bool(options.get("bias", True))
        outcome = synflow_rounds(self.model, plan, scoring.input_like(), bias=bias)
        if outcome is None:
            return before
        masks = Masks({name: outcome.masks[name] for name in before})
        convert_(self.model, masks=masks)
        if outcome.live is not None:
            dead: list[bool | None] = [not live for live in outcome.live]
        else:  # a path that is left at the end was there before; where none is, no one knows since when
            last = self._report(masks, self.rounds).no_live_path
            dead = [False if last is False else None] * (len(outcome.kept) - 1) + [last]
        for kept, no_live_path in zip(outcome.kept, dead, strict=True):
            empty = tuple(name for name, count in kept.items() if counts[name][1] and not count)
            density = sum(kept.values()) / sum(total for _, total in counts.values())
            self.history.append(Round(len(self.history) + 1, density, empty, no_live_path))
        return masks

    def _counts(self, number: int, before: Mapping[str, tuple[int, int]]) -> list[tuple[list[str], int, int]]:
        """(names, kept, seed of ties) of each group that round `number` counts; `before`: (kept, total)."""
        if self.courses is not None:
            return [
                ([name], course.after(self.schedule, number, self.rounds, before[name][0]),
                 tie_seed(self.seed, number, name))
                for name, course in self.courses.items()
            ]  # fmt: skip
        target = density_after(
            self.schedule, end=self.density, round=number, rounds=self.rounds, start=self.start
        )
        found = []
        for group in _groups(before, self.scope):
            allowed, total = (sum(column) for column in zip(*(before[name] for name in group), strict=True))
            kept = min(round(target * total), allowed)
            found.append((group, kept, tie_seed(self.seed, number, group[0])))
        return found

    def _select(self, found: dict[str, Tensor], before: Masks, number: int) -> Masks:
        kept: dict[str, Tensor] = {}
        for group, k, seed in self._counts(number, before.counts()):
            chosen = topk_mask(
                [rounded(found[name]) if self._rounded else found[name] for name in group],
                k=k,
                seed=seed,
                within=[before[name] for name in group],
                guess=self._guesses.setdefault(group[0], Guess()),
            )
            kept.update(zip(group, chosen, strict=True))
        return Masks({name: kept[name] for name in before})

    def _report(self, masks: Masks, number: int) -> Round:
        weights = masks.weights()
        empty = tuple(name for name, (kept, total) in weights.counts().items() if total and not kept)
        dead: bool | None = None
        # The probe runs a foreign module on ones in float64: whatever it stumbles over, pruning stands.
        with contextlib.suppress(Exception):
            live = live_weights(self.model, self._example())
            dead = not any(bool(mask.any()) for mask in live.values())
        return Round(number, masks.density(biases=True), empty, dead)

    def _example(self) -> Tensor | None:
        """An input for the probe; the data is read, once, only where nothing else tells its shape."""
        first = next(prunable_layers(self.model))[1]
        data = self.scoring["data"]
        if self._input is None and not isinstance(first, nn.Linear) and data is not None:
            self._input = None if isinstance(data, Iterator) else next(iter(data))[0][:1]
        return self._input


def prune_(
    model: nn.Module,
    method: str | ScoreFn,
    *,
    density: float,
    scope: str | None = None,
    rounds: int | None = None,
    schedule: str = "exponential",
    allocation: Allocation | None = None,
    data: Batches | None = None,
    loss_fn: LossFn | None = None,
    example_input: Tensor | None = None,
    options: Mapping[str, Any] | None = None,
    invert: bool = False,
    prune_bias: bool = False,
    seed: int = 0,
) -> Masks:
    """Prune `model` in place to exactly `round(density * n)` weights and return its masks.

    method: a name of `SCORES` or a callable, as in `scores`, which explains data, loss_fn, example_input,
    options and invert. scope: "global" (default) counts over all layers, "local" in each. allocation:
    shares the count out among the layers, as `layer_densities` does; scope "global" and `prune_bias` exclude
    it. rounds: scores and prunes that often along `schedule` (default 1, SynFlow 100), from the masks the
    model has; a pruned weight never returns; with an allocation each layer goes from the density it has to
    its own along the schedule. Plain and sparse layers become masked ones in place. Only weights compete
    unless `prune_bias`. Ties go by a seeded bijection. `Pruner` gives the same with a report per round.
    Raises `ArgumentError` on density outside (0, 1] or out of the allocation's reach, NaN scores and unknown
    names; masks then stay.
    """
    if rounds is None:
        rounds = DEFAULT_ROUNDS.get(method, 1) if isinstance(method, str) else 1
    pruner = Pruner(
        model, method, density=density, rounds=rounds, schedule=schedule, scope=scope,
        allocation=allocation, data=data, loss_fn=loss_fn, example_input=example_input, options=options,
        invert=invert, prune_bias=prune_bias, seed=seed,
    )  # fmt: skip
    before = _competing(model, prune_bias)
    try:
        return pruner.run()
    except BaseException:
        before.apply_(model)
        raise


def _scope(scope: str | None, allocation: Allocation | None, biases: bool) -> str:
    """The scope that was asked for, or the one that goes without saying."""
    if scope is not None and scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)
    if allocation is None:
        return scope or "global"
    if scope == "global":
        raise ArgumentError(
            'scope="global" counts over all layers together, an allocation counts in each: pass one of them'
        )
    if biases:
        raise ArgumentError("an allocation shares weights out among layers: it excludes prune_bias=True")
    return "local"


def _groups(masks: Mapping[str, object], scope: str) -> list[list[str]]:
    """The names that are counted together."""
    return [list(masks)] if scope == "global" else [[name] for name in masks]


def _competing(model: nn.Module, biases: bool) -> Masks:
    """The masks the model carries: of its weights and, if asked, its biases (all kept if they have none)."""
    carried = Masks.from_model(model)
    if not biases:
        return carried.weights()
    masks: dict[str, Tensor] = {}
    for prefix, layer in prunable_layers(model):
        masks[f"{prefix}weight"] = carried[f"{prefix}weight"]
        if isinstance(layer.bias, Tensor):
            name = f"{prefix}bias"
            masks[name] = carried.get(name, torch.ones_like(layer.bias, dtype=torch.bool))
    return Masks(masks)


def tie_seed(seed: int, number: int, name: str) -> int:
    """Layers pruned locally and rounds break their ties independently."""
    digest = hashlib.blake2b(f"ties {seed} {number} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
