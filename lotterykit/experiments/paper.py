"""The figures of Plant 'n' Seek (P0) as cells: `FIGURES`, and `quick`, the small sweep of `make demo`.

Left out until their methods stand: edge-popup (Figs. 4 and 5), RigL (Fig. 8), VGG-16 (Fig. 5). Figs. 4 and 7
are made at depth 5: P0 says 5 in its text and 6 in App. B.4. P0 plants at gain 0; we show gain 1 beside it
(methods 4), in Fig. 3 also .5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lotterykit.errors import unknown_name
from lotterykit.experiments.spec import METHODS, TASK_NAMES, CellSpec, Grid

DENSITIES: tuple[float | str, ...] = (0.01, 0.1, 0.5, 1.0, "truth")
GAINS = (1.0, 0.0)

# What `reduced` runs instead: every kind of cell of a figure, in seconds.
SMALL = {"samples": 200, "epochs": 1, "width": 40}
SMALL_SHOTS = {"shots": 2, "shot_epochs": 1}
SMALL_ROUNDS = 3


@dataclass(frozen=True)
class Figure:
    """One figure of P0: the `fields` of its grid, and how many seeds ("runs", "repetitions") it takes.

    `overlay` is the field that the figure compares, drawn as line styles in one panel.
    """

    number: int
    title: str
    seeds: int
    fields: dict[str, Any] = field(default_factory=dict)
    overlay: str | None = None

    def cells(self, seeds: int | None = None) -> list[CellSpec]:
        """Every cell of the figure with its oracle rows, for its own number of seeds unless told."""
        return Grid(grid=_axes(**self.fields), seeds=seeds or self.seeds).cells()


def _axes(**fields: Any) -> dict[str, Any]:
    """The grid shared by all figures, changed by `fields`."""
    axes = {"task": TASK_NAMES, "method": METHODS, "density": DENSITIES, "gain": GAINS}
    return {name: list(values) for name, values in axes.items()} | fields


def quick() -> list[CellSpec]:
    """3 tasks x 5 methods x 5 densities x 2 seeds single-shot and Circle multi-shot x 1 seed, at gain 1."""
    single = Grid(grid=_axes(gain=1.0), seeds=2).cells()
    multi = Grid(grid=_axes(gain=1.0, task="circle", pipeline="multi-shot"), seeds=1).cells()
    return single + multi


def cells(numbers: Iterable[int] | None = None) -> list[CellSpec]:
    """The cells of the figures `numbers` (all, by default), each once, in the order of the figures.

    Raises `ArgumentError` for a figure that is not in `FIGURES`.
    """
    wanted = [find_figure(number) for number in (FIGURES if numbers is None else numbers)]
    return list(dict.fromkeys(cell for figure in wanted for cell in figure.cells()))


def find_figure(number: int) -> Figure:
    """The figure `number` of P0. Raises `ArgumentError` for one that is not in `FIGURES`."""
    if number not in FIGURES:
        raise unknown_name("figure", number, FIGURES)
    return FIGURES[number]


def sections(numbers: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """The figures `numbers` (all, by default) as `reports.write_report` takes them: a section each.

    {"number", "title", "overlay", "keys": the keys of its cells}; raises `ArgumentError` as `cells` does.
    """
    wanted = dict.fromkeys(FIGURES if numbers is None else numbers)
    return [
        {"number": f.number, "title": f.title, "overlay": f.overlay, "keys": [c.key() for c in f.cells()]}
        for f in map(find_figure, wanted)
    ]


def reduced(figure: Figure) -> list[CellSpec]:
    """A tiny version of a figure: 1 seed, its first and last method, 2 densities, short training."""
    methods = list(_axes(**figure.fields)["method"])
    small: dict[CellSpec, None] = {}
    for cell in figure.cells(seeds=1):
        if cell.method not in {methods[0], methods[-1], "oracle"} or cell.density not in {0.1, "truth"}:
            continue
        changed = cell.model_dump() | SMALL
        if cell.pipeline == "multi-shot":
            changed |= SMALL_SHOTS
        changed["rounds"] = min(cell.rounds, SMALL_ROUNDS)
        small[CellSpec(**changed)] = None
    return list(small)


_SINGLE: dict[str, Any] = {"pipeline": "single-shot"}
_MULTI: dict[str, Any] = {"pipeline": "multi-shot"}

FIGURES: dict[int, Figure] = {
    figure.number: figure
    for figure in (
        Figure(3, "Singleshot results", 25, _SINGLE | {"gain": [1.0, 0.5, 0.0]}),
        Figure(4, "Multishot results", 10, _MULTI),
        Figure(7, "Finetuning vs initialization", 10, _MULTI | {"reset": ["init", "never", "not-last"]},
               overlay="reset"),
        Figure(9, "Singleshot results, depth 3", 25, _SINGLE | {"depth": 3}),
        Figure(10, "Singleshot results, depth 5", 25, _SINGLE | {"depth": 5}),
        Figure(11, "Singleshot results, depth 10", 25, _SINGLE | {"depth": 10}),
        Figure(12, "Singleshot results, width 1000", 10,
               _SINGLE | {"task": "circle", "depth": 6, "width": 1000, "gain": 1.0}),
        Figure(13, "SynFlow with 100 scoring rounds", 10,
               _SINGLE | {"task": "circle", "method": ["synflow"], "rounds": 100, "depth": 6}),
        Figure(14, "Varying noise, multishot", 10,
               _MULTI | {"task": "circle", "depth": 6, "noise": [0.0, 0.001, 0.01, 0.1]},
               overlay="noise"),
        Figure(15, "Multishot with local pruning", 10, _MULTI | {"task": "circle", "scope": "local"}),
    )
}  # fmt: skip
