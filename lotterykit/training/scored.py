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
from lotterykit.training.recipe import derived_seed

METHODS = ("edge-popup", "gem-miner")
SCOPES = ("layer", "global")
KEPT_FROM = 0.5  # Gem-Miner's forward keeps p >= .5


@dataclass(frozen=True)
class ScoreTraining:
    """How `RunSpec.scores` trains: the recipe's optimizer acts on scores, the weights are frozen.

    "edge-popup" (Ramanujan et al. 2020): each step keeps the `density` share of highest |score|, counted in
    each tensor (`scope="layer"`) or over all (`"global"`); every score gets the straight-through gradient of
    |score|, dL/dw_effective * w * sign(score), which is 0 at 0. `anneal`: epoch e of E keeps density^(e/E)
    (Plant 'n' Seek, B.1). Scores start kaiming_uniform(a = sqrt 5).
    "gem-miner" (Rare Gems, Alg. 1): keeps p >= .5; every p gets dL/dw_effective * w and the gradient of
    `penalty` * ||p||^2 and is projected to [0, 1] after each step; after every `freeze_every` epochs but the
    last the lowest p freeze at 0 (by default counted over all tensors), n = floor((E - 1) / freeze_every)
    times, to the share density^(i/n); what is not frozen is kept at the end. `density` None or 0: nothing
    freezes and the end keeps p >= .5, GEM-MINER(0). p starts uniform on [0, 1].

    `bias`: biases have scores as well, else they stay, all of them. `start`: the scores by parameter name.
    A NaN score ranks below all others. Raises `ArgumentError`.
    """

    method: str = "edge-popup"
    density: float | None = None
    scope: str | None = None
    anneal: bool = False
    penalty: float = 0.0
    freeze_every: int = 5
    bias: bool = False
    start: Mapping[str, Tensor] | None = None

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
        if gem and self.anneal:
            raise ArgumentError('anneal is for method "edge-popup" only, got "gem-miner"')
        if not gem and (self.penalty != 0 or self.freeze_every != 5):
            raise ArgumentError('penalty and freeze_every are for method "gem-miner" only, got "edge-popup"')
        if not 0 <= self.penalty < math.inf:
            raise ArgumentError(f"penalty must be a finite number >= 0, got {self.penalty}")
        every = self.freeze_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"freeze_every must be an int >= 1, got {every!r}")

    def freezes(self, epochs: int) -> int:
        """How often `epochs` epochs of Gem-Miner freeze. Raises `ArgumentError` where a density is asked
        for that no freeze could bring about."""
        if self.method != "gem-miner" or self.density is None:
            return 0
        count = (epochs - 1) // self.freeze_every
        if count < 1 and self.density < 1:
            raise ArgumentError(
                f"gem-miner freezes after every {self.freeze_every} epochs but the last: density "
                f"{self.density:g} needs more than {self.freeze_every} epochs, got {epochs}"
            )
        return max(0, count)

    def density_in(self, epoch: int, epochs: int) -> float:
        """The share of entries that may be kept in epoch `epoch`, counted from 0, of `epochs`."""
        if self.method == "edge-popup":
            rho = check_density(self.density)
            return rho ** ((epoch + 1) / epochs) if self.anneal and epochs else rho
        freezes = self.freezes(epochs)
        return 1.0 if not freezes else float(self.density or 1) ** (epoch // self.freeze_every / freezes)

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


def tie_seed(seed: int, group: int) -> int:
    """The seed of `topk_mask` for the ties of group number `group` of a run with seed `seed`: the same in
    every step, so that a mask is a function of the scores alone."""
    return derived_seed(f"score ties {seed} {group}")


def initial_scores(
    training: ScoreTraining, shapes: Mapping[str, Sequence[int]], seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The scores a run starts from, by name: drawn in float64 and then rounded.

    Edge-popup: kaiming_uniform(a = sqrt 5), U[-b, b] with b = 1 / sqrt(fan_in), biases with the fan-in of
    their layer; Gem-Miner: U[0, 1].
    """
    if training.start is not None:
        return {name: training.start[name].detach().clone() for name in training.names(shapes)}
    generator = torch.Generator().manual_seed(derived_seed(f"scores {seed}"))
    found = {}
    for name in training.names(shapes):
        drawn = torch.rand(tuple(shapes[name]), generator=generator, dtype=torch.float64)
        if training.method == "edge-popup":
            fan_in = shapes[f"{name.rpartition('.')[0]}.weight"][1]
            drawn = (drawn * 2.0 - 1.0) / math.sqrt(fan_in)
        found[name] = drawn.to(dtype)
    return found


def check_training(
    training: ScoreTraining,
    shapes: Mapping[str, Sequence[int]],
    epochs: int,
    dtype: torch.dtype,
    masks: Mapping[str, Tensor] | None,
) -> None:
    """Raises `ArgumentError` where `training` does not fit a network of these parameters, or `masks` name
    tensors whose entries the scores choose."""
    training.freezes(epochs)
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
