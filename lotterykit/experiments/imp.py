"""Iterative magnitude pruning (The Lottery Ticket Hypothesis, sec. 1), with rewinding to a step (Frankle et
al. 2020), learning-rate rewinding and fine-tuning (Renda et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_density, unknown_name
from lotterykit.experiments.searches import Search
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Trained, Training
from lotterykit.mask import Masks
from lotterykit.pruning.levels import best_kept
from lotterykit.training.recipe import Recipe

AFTER = ("rewind", "continue", "learning-rate", "fine-tune")
FINAL = "final"
MOST_LEVELS = 1000


@dataclass(frozen=True)
class IMP:
    """Iterative magnitude pruning of a network to `density`, level by level.

    A level trains, then prunes the share `fractions[name]` of each tensor's remaining weights, those of least
    magnitude, in each tensor or together (`scope`; equal fractions then, 0 for a tensor that is left alone);
    the last level prunes less, to exactly `density`. `one_shot`: a single level prunes to `density`.
    `rewind`: the step whose weights a ticket goes back to (0: the init, P4). `after` a level:
    "rewind" trains on from those weights, mask and step (P4, strategy 1); "continue" trains the trained
    weights anew and resets at the end alone (P4, strategy 2); "learning-rate" trains the trained weights
    with the schedule from step `rewind` on, "fine-tune" for as long at the schedule's last rate (Renda et
    al., sec. 2): the weights of these two are never reset.
    `per_epoch` is the number of steps an epoch takes and `steps` a training's. A level's "epochs" are those
    that finding its ticket took: the trainings before it, and where trained weights are what is found
    ("learning-rate", "fine-tune") its own as well (Rare Gems, Table 1: 2,850 and 3,000 for 19 levels of 150).
    Raises `ArgumentError` where `density` is out of reach of the fractions.
    """

    recipe: Recipe
    fractions: Mapping[str, float]
    density: float
    per_epoch: int
    steps: int
    scope: str = "local"
    after: str = "rewind"
    rewind: int = 0
    one_shot: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.after not in AFTER:
            raise unknown_name("after", self.after, AFTER)
        if self.scope not in ("local", "global"):
            raise unknown_name("scope", self.scope, ("local", "global"))
        if type(self.rewind) is not int or not 0 <= self.rewind < self.steps:
            raise ArgumentError(
                f"rewind must be a step in [0, {self.steps}), before the training ends, got {self.rewind!r}"
            )
        for name, fraction in self.fractions.items():
            if not 0 <= fraction < 1:
                raise ArgumentError(f"the prune fraction of {name!r} must lie in [0, 1), got {fraction!r}")
        if self.scope == "global" and len({f for f in self.fractions.values() if f > 0}) > 1:
            raise ArgumentError("scope 'global' ranks layers together: their prune fractions must be equal")

    def search(
        self,
        state: Mapping[str, Tensor],
        *,
        recipe: Mapping[str, Any] | None = None,
        on_level: Callable[[int, Ticket], None] | None = None,
    ) -> Search:
        """The search from a network's `state` at init. `recipe` goes into the ticket; `on_level(level,
        ticket)` is called after each level with the ticket it trained."""
        masks = Masks({n: torch.ones_like(state[n], dtype=torch.bool) for n in self.fractions})
        counts = self._counts({name: mask.numel() for name, mask in masks.items()})
        if self.one_shot:
            counts = counts[-1:]
        snapshots = {INIT: dict(state)}
        point, start, taken = INIT, dict(state), 0
        if self.rewind:
            dense = yield Training(start, masks, self.recipe, self.seed, last=self.rewind)
            point, start, taken = f"{self.rewind}it", dense.state, self.rewind
            snapshots[point] = start
        levels: list[dict[str, Any]] = []
        for level in range(len(counts) + 1):
            trained = yield self._training(level, start, masks)
            before = taken
            taken += self.steps - (self.rewind if level == 0 or self.after != "continue" else 0)
            keeps = self.after in ("learning-rate", "fine-tune")  # its trained weights are what was found
            levels.append(self._row(level, masks, trained, taken if keeps else before))
            final = keeps or level == len(counts)
            ticket = Ticket(
                masks,
                snapshots | ({FINAL: trained.state} if final else {}),
                dict(recipe or {}),
                {"levels": list(levels), "point": point, **levels[-1]},
            )
            if on_level is not None:
                on_level(level, ticket)
            if level < len(counts):
                masks = pruned(masks, trained.state, counts[level], self._groups(), self.seed + level)
                start = trained.state if self.after != "rewind" else start
        if self.after == "continue":  # the ticket that was found has not been trained from its init
            trained = yield Training(snapshots[point], masks, self.recipe, self.seed, self.rewind, self.steps)
            levels.append(self._row(len(levels), masks, trained, before))
            results = {"levels": levels, "point": point, **levels[-1]}
            ticket = Ticket(masks, snapshots | {FINAL: trained.state}, dict(recipe or {}), results)
        return ticket

    def _training(self, level: int, start: Mapping[str, Tensor], masks: Masks) -> Training:
        if level == 0 or self.after in ("rewind", "learning-rate"):
            return Training(start, masks, self.recipe, self.seed, self.rewind, self.steps)
        if self.after == "continue":
            return Training(start, masks, self.recipe, self.seed, last=self.steps)
        last = self.recipe.learning_rate(max(0, self.steps - 1), self.per_epoch)
        tuned = replace(self.recipe, schedule="constant", warmup=0, milestones=(), lr=last)
        return Training(start, masks, tuned, self.seed, self.rewind, self.steps)

    def _counts(self, sizes: Mapping[str, int]) -> list[dict[str, int]]:
        """`level_counts`, tensors that are ranked together counted together, by their first name."""
        first = {name: group[0] for group in self._groups() for name in group}
        together: dict[str, int] = {}
        for name, size in sizes.items():
            together[first.get(name, name)] = together.get(first.get(name, name), 0) + size
        return level_counts(together, {name: self.fractions[name] for name in together}, self.density)

    def _groups(self) -> list[list[str]]:
        """The names that are ranked together."""
        ranked = [name for name, fraction in self.fractions.items() if fraction > 0]
        return [ranked] if self.scope == "global" else [[name] for name in ranked]

    def _row(self, level: int, masks: Masks, trained: Trained, taken: int) -> dict[str, Any]:
        return {
            "level": level,
            "density": masks.density(),
            "empty_layers": [name for name, (kept, _) in masks.counts().items() if not kept],
            "epochs": taken / self.per_epoch,
            **outcome(trained),
        }


def outcome(trained: Trained) -> dict[str, Any]:
    """Metrics at a training's end and, with validation data, at its early-stopping iteration (P4, sec. 1)."""
    row: dict[str, Any] = plain(trained.metrics)
    stop = trained.early_stop()
    if stop is not None:
        row |= {"stop_step": stop.step, "stop_validation": plain(stop.validation)}
        row |= {f"stop_{name}": value for name, value in plain(stop.metrics).items()}
    return row


def plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as a ticket holds them: None where a training that diverged left no finite number."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def level_counts(
    sizes: Mapping[str, int], fractions: Mapping[str, float], density: float
) -> list[dict[str, int]]:
    """How many weights of each tensor every level keeps: round((1 - fraction) * kept before), as many levels
    as it takes to come to `density`; the last, its fractions shrunk by one factor, to
    exactly round(density * N).

    >>> level_counts({"a": 100, "b": 50}, {"a": 0.2, "b": 0.1}, 0.75)
    [{'a': 80, 'b': 45}, {'a': 70, 'b': 42}]
    """
    target = round(check_density(density) * sum(sizes.values()))
    kept = dict(sizes)
    levels: list[dict[str, int]] = []
    while sum(kept.values()) > target:
        after = _shrunk(kept, fractions, 1.0)
        if sum(after.values()) < target:
            after = _exact(kept, fractions, target)
        if after == kept or len(levels) == MOST_LEVELS:
            fixed = [name for name, fraction in fractions.items() if fraction == 0]
            why = f"{', '.join(fixed)} are never pruned" if fixed else "the fractions are too small"
            raise ArgumentError(
                f"density {density:g} keeps {target} weights, but {sum(kept.values())} are left after "
                f"{len(levels)} levels: {why}"
            )
        levels.append(after)
        kept = after
    return levels


def _shrunk(kept: Mapping[str, int], fractions: Mapping[str, float], factor: float) -> dict[str, int]:
    return {name: round(count * (1 - factor * fractions[name])) for name, count in kept.items()}


def _exact(kept: Mapping[str, int], fractions: Mapping[str, float], target: int) -> dict[str, int]:
    """The counts of the largest factor that leaves `target` or more, then one less in the largest tensors."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sum(_shrunk(kept, fractions, middle).values()) >= target else (low, middle)
        )
    found = _shrunk(kept, fractions, low)
    ranked = sorted((n for n in found if fractions[n] > 0), key=lambda name: -found[name])
    excess = sum(found.values()) - target
    for i in range(excess):
        found[ranked[i % len(ranked)]] -= 1
    return found


def pruned(
    masks: Masks, state: Mapping[str, Tensor], counts: Mapping[str, int], groups: list[list[str]], seed: int
) -> Masks:
    """The kept weights of largest magnitude in `state`, of those that `masks` keep: `counts[group[0]]` of
    each group of tensors together; other tensors keep what they have.

    Raises `ArgumentError` for weights that are NaN."""
    magnitudes = {name: state[name].abs() for group in groups for name in group}
    if diverged := [name for name, of in magnitudes.items() if bool(of.isnan().any())]:
        raise ArgumentError(
            f"the training diverged, {', '.join(diverged)} hold NaN, which has no rank: take a smaller lr"
        )
    number = len(groups)
    return best_kept(
        masks,
        magnitudes,
        [(group, counts[group[0]], (seed * number + i) % 2**63) for i, group in enumerate(groups)],
    )
