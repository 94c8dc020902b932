"""The figures of Plant 'n' Seek (P0) as cells: `FIGURES`, our controls beside them: `CONTROLS`, and `quick`,
the small sweep of `make demo`.

Left out until their methods stand: RigL (Fig. 8), VGG-16 (Fig. 5). Figs. 4 and 7 are made at depth 5: P0
says 5 in its text and 6 in App. B.4. P0 plants at gain 0; we show gain 1 beside it (methods 4), in Fig. 3,
where a ticket has a scale worth sharing out (not ReLU), also .25, .5 and .75.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lotterykit.errors import unknown_name
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.spec import EDGE_POPUP, LADDER, TASK_NAMES, CellSpec

DENSITIES: tuple[float | str, ...] = (0.01, 0.1, 0.5, 1.0, "truth")
GAINS = (1.0, 0.0)
METHODS = ("random", "magnitude", "snip", "grasp", "synflow")  # the scores that P0 compares

# What `reduced` runs instead: every kind of cell of a figure, in seconds.
SMALL = {"samples": 200, "epochs": 1, "width": 40}
SMALL_SHOTS = {"shots": 2, "shot_epochs": 1}
SMALL_SCORES = {"score_epochs": 1}
SMALL_ROUNDS = 3


@dataclass(frozen=True)
class Figure:
    """One figure of P0 (`name` is its number) or a control of ours: the `grids` of its cells, and how many
    seeds ("runs", "repetitions") it takes.

    `overlay` is the field that the figure compares, drawn as line styles in one panel.
    """

    name: int | str
    title: str
    seeds: int
    grids: tuple[dict[str, Any], ...]
    overlay: str | None = None

    def cells(self, seeds: int | None = None) -> list[CellSpec]:
        """Every cell of the figure with its oracle rows, for its own number of seeds unless told."""
        made: dict[CellSpec, None] = {}
        for fields in self.grids:
            # edge-popup stands beside the other methods and shares their oracle rows
            oracle = fields.get("pipeline") != "edge-popup"
            grid = Grid(grid=_axes(**fields), seeds=seeds or self.seeds, oracle=oracle)
            made |= dict.fromkeys(grid.cells())
        return list(made)


def _axes(**fields: Any) -> dict[str, Any]:
    """The grid shared by all figures, changed by `fields`."""
    return {"task": TASK_NAMES, "method": METHODS, "density": DENSITIES, "gain": GAINS} | fields


def quick() -> list[CellSpec]:
    """3 tasks x 5 methods x 5 densities x 2 seeds single-shot and Circle multi-shot x 1 seed, at gain 1."""
    single = Grid(grid=_axes(gain=1.0), seeds=2).cells()
    multi = Grid(grid=_axes(gain=1.0, task="circle", pipeline="multi-shot"), seeds=1).cells()
    return single + multi


def cells(names: Iterable[int | str] | None = None) -> list[CellSpec]:
    """The cells of the figures and controls `names` (all, by default), each once, in their order.

    Raises `ArgumentError` for one that is in neither `FIGURES` nor `CONTROLS`.
    """
    wanted = [find_figure(name) for name in (STUDY if names is None else names)]
    return list(dict.fromkeys(cell for figure in wanted for cell in figure.cells()))


def find_figure(name: int | str) -> Figure:
    """The figure or control of that name. Raises `ArgumentError` for one that is in neither list."""
    if name not in STUDY:
        raise unknown_name("figure", name, STUDY)
    return STUDY[name]


def sections(names: Iterable[int | str] | None = None) -> list[dict[str, Any]]:
    """The figures and controls `names` (all, by default) as `reports.write_report` takes them.

    A section each: {"name", "title", "overlay", "keys": the keys of its cells}. Raises `ArgumentError` as
    `cells` does.
    """
    wanted = dict.fromkeys(STUDY if names is None else names)
    return [
        {"name": f.name, "title": f.title, "overlay": f.overlay, "keys": [c.key() for c in f.cells()]}
        for f in map(find_figure, wanted)
    ]


def reduced(figure: Figure) -> list[CellSpec]:
    """A tiny version of a figure: 1 seed, the first and last method of each grid, 2 densities, short
    training."""
    methods = {"oracle"}
    for fields in figure.grids:
        own = list(_axes(**fields)["method"])
        methods |= {own[0], own[-1]}
    small: dict[CellSpec, None] = {}
    for cell in figure.cells(seeds=1):
        if cell.method not in methods or cell.density not in {0.1, "truth"}:
            continue
        changed = cell.model_dump() | SMALL
        if cell.pipeline == "multi-shot":
            changed |= SMALL_SHOTS
        if cell.pipeline == "edge-popup":
            changed |= SMALL_SCORES
        changed["rounds"] = min(cell.rounds, SMALL_ROUNDS)
        small[CellSpec(**changed)] = None
    return list(small)


_SINGLE: dict[str, Any] = {"pipeline": "single-shot"}
_MULTI: dict[str, Any] = {"pipeline": "multi-shot"}
_POPUP: dict[str, Any] = {"pipeline": "edge-popup", "method": EDGE_POPUP}


def _by_name(*figures: Figure) -> dict[int | str, Figure]:
    return {figure.name: figure for figure in figures}


FIGURES: dict[int | str, Figure] = _by_name(
    Figure(3, "Singleshot results", 25,
           (_SINGLE, _SINGLE | {"task": ["circle", "helix"], "gain": [0.75, 0.5, 0.25]})),
    Figure(4, "Multishot results and edge-popup", 10, (_MULTI, _POPUP)),
    Figure(7, "Finetuning vs initialization", 10, (_MULTI | {"reset": ["init", "never", "not-last"]},),
           overlay="reset"),
    Figure(9, "Singleshot results, depth 3", 25, (_SINGLE | {"depth": 3},)),
    Figure(10, "Singleshot results, depth 5", 25, (_SINGLE | {"depth": 5},)),
    Figure(11, "Singleshot results, depth 10", 25, (_SINGLE | {"depth": 10},)),
    Figure(12, "Singleshot results, width 1000", 10,
           (_SINGLE | {"task": "circle", "depth": 6, "width": 1000, "gain": 1.0},)),
    Figure(13, "SynFlow with 1 and 100 scoring rounds", 10,
           (_SINGLE | {"task": "circle", "method": ["synflow"], "rounds": [1, 100], "depth": 6},),
           overlay="rounds"),
    Figure(14, "Varying noise, multishot", 10,
           (_MULTI | {"task": "circle", "depth": 6, "noise": [0.0, 0.001, 0.01, 0.1]},),
           overlay="noise"),
    Figure(15, "Multishot with local pruning", 10, (_MULTI | {"task": "circle", "scope": "local"},)),
)  # fmt: skip

# What makes the figures decisive: the same mothers without a ticket, and tickets of which more and more is
# known.
CONTROLS: dict[int | str, Figure] = _by_name(
    Figure("unplanted", "The same mothers unplanted, singleshot", 10,
           (_SINGLE | {"planted": False, "gain": 1.0},)),
    Figure("ladder", "The information ladder", 25,
           (_SINGLE | {"method": ("random", *LADDER), "density": "truth"},)),
)  # fmt: skip

STUDY: dict[int | str, Figure] = FIGURES | CONTROLS
