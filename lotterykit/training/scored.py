"""`ScoreTraining`: the weights stay, scores that choose among them are trained (edge-popup, Gem-Miner).

What is stated here holds for every engine: which tensors have scores, where these start, how many entries an
epoch keeps, and how ties fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_density, unknown_name
from lotterykit.nn.scored import KEPT_FROM, METHODS
from lotterykit.nn.supermask import draw_scores, tie_seed

__all__ = ["KEPT_FROM", "METHODS", "SCOPES", "ScoreTraining", "check_training", "initial_scores", "tie_seed"]

SCOPES = ("layer", "global")


@dataclass(frozen=True)
class ScoreTraining:
    """How scores are trained: the recipe's optimizer acts on them, the weights are frozen.

    "edge-popup" (Ramanujan et al. 2020): each step keeps the `density` share of highest |score|, counted in
    each tensor (`scope="layer"`) or over all (`"global"`); every score gets the straight-through gradient of
    |score|, dL/dw_effective * w * sign(score), which is 0 at 0. `anneal`: epoch e of E keeps density^(e/E)
    (Plant 'n' Seek, B.1). `gradual_every`: all are kept at first, and after every so many epochs but the last
    fewer, on Gem-Miner's schedule; none is frozen (Rare Gems, Table 3, with 5: its EP with gradual pruning).
    Scores start kaiming_uniform(a = sqrt 5).
    "gem-miner" (Rare Gems, Alg. 1): keeps p >= .5; every p gets dL/dw_effective * w and is projected to
    [0, 1] after each step; after every `freeze_every` epochs but the last the lowest p freeze at 0 (by
    default counted over all tensors), n = floor((E - 1) / freeze_every) times, to the share density^(i/n);
    what is not frozen is kept at the end. `density` None or 0: nothing freezes and the end keeps p >= .5,
    GEM-MINER(0). p starts uniform on [0, 1].

    The loss gets `penalty` * ||scores||^2, or with `penalty_norm` 1 `penalty` * ||scores||_1, whose slope at
    0 is 0 (Rare Gems, sec. 3: Gem-Miner's; Table 3: 1e-4 with edge-popup). `bias`: biases have scores as
    well, else they stay, all of them. `start`: the scores by parameter name. Replicas know `penalty_norm` 2
    only and rank a NaN score below all others; a module (`train`, `ScoredTraining`) knows both and no `bias`,
    and raises at a NaN. Raises `ArgumentError`.
    """

    method: str = "edge-popup"
    density: float | None = None
    scope: str | None = None
    anneal: bool = False
    penalty: float = 0.0
    freeze_every: int = 5
    bias: bool = False
    start: Mapping[str, Tensor] | None = None
    gradual_every: int | None = None
    penalty_norm: int = 2

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        gem = self.method == "gem-miner"
        if self.scope is None:
            object.__setattr__(self, "scope", "global" if gem else "layer")
        elif self.scope not in SCOPES:
            raise unknown_name("scope", self.scope, SCOPES)
        if gem and self.density in (None, 0):
            object.__setattr__(self, "density", None)
        else:
            check_density(self.density)
        if gem and (self.anneal or self.gradual_every is not None):
            raise ArgumentError('anneal and gradual_every are for method "edge-popup" only, got "gem-miner"')
        if self.anneal and self.gradual_every is not None:
            raise ArgumentError("anneal and gradual_every are two schedules: give one of them")
        if not gem and self.freeze_every != 5:
            raise ArgumentError('freeze_every is for method "gem-miner" only, got "edge-popup"')
        if self.penalty_norm not in (1, 2):
            raise ArgumentError(f"penalty_norm must be 1 or 2, got {self.penalty_norm!r}")
        if not 0 <= self.penalty < math.inf:
            raise ArgumentError(f"penalty must be a finite number >= 0, got {self.penalty}")
        for name, every in (("freeze_every", self.freeze_every), ("gradual_every", self.gradual_every)):
            if name == "gradual_every" and every is None:
                continue
            if isinstance(every, bool) or not isinstance(every, int) or every < 1:
                raise ArgumentError(f"{name} must be an int >= 1, got {every!r}")

    @property
    def freezes(self) -> bool:
        """Whether entries are out for good before the end: Gem-Miner with a density."""
        return self.method == "gem-miner" and self.density is not None

    @property
    def every(self) -> int | None:
        """After how many epochs the density falls, by freezing or gradually; None: not in such steps."""
        if self.method == "gem-miner":
            return None if self.density is None else self.freeze_every
        return self.gradual_every

    def falls(self, epochs: int) -> int:
        """How often the density falls in `epochs` epochs. Raises `ArgumentError` where a density is asked
        for that no fall could bring about."""
        if self.every is None:
            return 0
        count = (epochs - 1) // self.every
        if count < 1 and (self.density or 1) < 1:
            does = "freezes" if self.method == "gem-miner" else "lowers its density"
            raise ArgumentError(
                f"{self.method} {does} after every {self.every} epochs but the last: density "
                f"{self.density:g} needs more than {self.every} epochs, got {epochs}"
            )
        return max(0, count)

    def density_in(self, epoch: int, epochs: int) -> float:
        """The share of entries that may be kept in epoch `epoch`, counted from 0, of `epochs`."""
        if self.every is not None:
            falls = self.falls(epochs)
            return 1.0 if not falls else float(self.density or 1) ** (epoch // self.every / falls)
        if self.method == "gem-miner":
            return 1.0
        rho = check_density(self.density)
        return rho ** ((epoch + 1) / epochs) if self.anneal and epochs else rho

    def counts(self, sizes: Sequence[int], epoch: int, epochs: int) -> list[int]:
        """How many entries epoch `epoch` keeps at most in each group (`groups`) of tensors of these sizes."""
        density = self.density_in(epoch, epochs)
        return [round(density * sum(sizes[i] for i in group)) for group in self.groups(len(sizes))]

    def groups(self, tensors: int) -> list[list[int]]:
        """The numbers of the scored tensors that are counted together."""
        return [list(range(tensors))] if self.scope == "global" else [[i] for i in range(tensors)]

    def names(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """The tensors that have scores, in the order of the network."""
        return [name for name in shapes if self.bias or not name.endswith("bias")]


def initial_scores(
    training: ScoreTraining, shapes: Mapping[str, Sequence[int]], seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The scores a run starts from, by name: `start`, or as `draw_scores` draws them."""
    names = training.names(shapes)
    if training.start is not None:
        return {name: training.start[name].detach().clone() for name in names}
    return draw_scores(training.method, {name: shapes[name] for name in names}, seed, dtype)


def check_training(
    training: ScoreTraining,
    shapes: Mapping[str, Sequence[int]],
    epochs: int,
    dtype: torch.dtype,
    masks: Mapping[str, Tensor] | None,
) -> None:
    """Raises `ArgumentError` where `training` does not fit a network of these parameters, or `masks` name
    tensors whose entries the scores choose."""
    training.falls(epochs)
    names = training.names(shapes)
    if clash := [name for name in names if name in (masks or {})]:
        raise ArgumentError(f"scores choose the entries of {', '.join(clash)}: leave out their masks")
    start = training.start
    if start is None:
        return
    if set(start) != set(names):
        raise ArgumentError(f"start must hold scores of {', '.join(names)}, got {', '.join(start)}")
    for name in names:
        scores = start[name]
        if tuple(scores.shape) != tuple(shapes[name]) or scores.dtype != dtype:
            raise ArgumentError(
                f"start scores of {name!r} must be {list(shapes[name])} of {dtype}, "
                f"got {list(scores.shape)} of {scores.dtype}"
            )
        if training.method == "gem-miner" and not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ArgumentError(f"gem-miner's scores lie in [0, 1], those of {name!r} do not")
        if bool(scores.isnan().any()):
            raise ArgumentError(f"start scores of {name!r} hold NaN")
