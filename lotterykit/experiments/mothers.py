"""`Mothers`: data, mother networks and what is planted in them, each made once for the cells of a batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lotterykit.data.planted import TASKS
from lotterykit.experiments.spec import CellSpec, derive_seed
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp
from lotterykit.planting.match import Match, match
from lotterykit.planting.plant import Planted, write
from lotterykit.planting.targets import TARGETS, TargetNetwork
from lotterykit.training.recipe import Split

DataKey = tuple[str, int, float, int]


@dataclass
class Hidden:
    """A planted mother with its data: what the cells of one seed and setting share. Never written to.

    `planted` of an unplanted mother: the mother as it is, and the masks of where it would have been.
    """

    split: Split
    planted: Planted
    seconds: float = 0.0
    cells: int = 0

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The network's parameters by name."""
        return {name: p.detach() for name, p in self.planted.network.named_parameters()}

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Widths, the inputs first."""
        shapes = [w.shape for w in self.weights.values() if w.dim() == 2]
        return (shapes[0][1], *(shape[0] for shape in shapes))

    @cached_property
    def truth(self) -> Masks:
        """The planted weights, without biases."""
        return self.planted.ticket.weights()

    @cached_property
    def truth_live(self) -> Masks:
        return self.truth.live()

    @cached_property
    def density(self) -> float:
        """The truth's density."""
        return self.truth.density()


class Mothers:
    """Hides tickets; what several cells need is made once: data, mothers, matches, planted networks."""

    def __init__(self, data: Mapping[DataKey, Split] | None = None) -> None:
        """`data` holds data sets that are drawn already."""
        self._made: dict[Any, Any] = {("data", *key): split for key, split in (data or {}).items()}

    def hide(self, cell: CellSpec) -> Hidden:
        """Data, mother and planted ticket of a cell: functions of its seed and setting, not of the method
        (with `scaled_init` also of the density)."""
        scaled = cell.density if cell.scaled_init else None
        began = time.perf_counter()
        shape = (cell.task, cell.depth, cell.width, cell.init, cell.seed, scaled)
        matching = (*shape, cell.matching, cell.scaling)
        data = data_key(cell)
        key = ("hidden", *matching, *data, cell.gain, cell.planted)
        if key not in self._made:
            split = self._once(("data", *data), lambda: draw_data(data))
            mother = self._once(("mother", *shape), lambda: _mother(cell))
            matched = self._once(("match", *matching), lambda: _match(cell, mother))
            self._made[key] = Hidden(split, _planted(cell, matched, mother))
        hidden: Hidden = self._made[key]
        hidden.seconds += time.perf_counter() - began
        hidden.cells += 1
        return hidden

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def data_key(cell: CellSpec) -> DataKey:
    """What a cell's data depend on."""
    return cell.task, cell.samples, cell.noise, cell.seed


def draw_data(key: DataKey) -> Split:
    """The data of all cells with this `data_key`."""
    task, samples, noise, seed = key
    return Split(*TASKS[task].sample(samples, noise, derive_seed(seed, "data")))


def _mother(cell: CellSpec) -> nn.Module:
    task = TASKS[cell.task]
    density = 1.0
    if cell.scaled_init:
        density = _target(cell).density(cell.width) if cell.density == "truth" else float(cell.density)
    widths = [task.inputs, *[cell.width] * (cell.depth - 2), task.outputs]
    return mlp(widths, init=cell.init, seed=derive_seed(cell.seed, "init"), density=density)


def _match(cell: CellSpec, mother: nn.Module) -> Match:
    return match(
        _target(cell), mother, matching=cell.matching, scaling=cell.scaling,
        seed=derive_seed(cell.seed, "plant"),
    )  # fmt: skip


def _planted(cell: CellSpec, matched: Match, mother: nn.Module) -> Planted:
    planted = write(matched, mother, gain=cell.gain)
    if cell.planted:
        return planted
    return Planted(mother, planted.ticket, 1.0, {}, planted.assignment)


def _target(cell: CellSpec) -> TargetNetwork:
    return TARGETS[cell.task](cell.depth)
