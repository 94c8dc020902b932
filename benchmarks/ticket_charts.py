"""The charts of what tickets.py measured: results/tickets/<stage>.csv -> .svg beside it.

    python benchmarks/ticket_charts.py

levels.svg: accuracy at the early-stopping iteration and after training, and that iteration, against density,
of the tickets and their controls. methods.svg: a panel a method, its tickets against their sanity checks.
Lines are means over seeds, bands least to greatest.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from lotterykit.reports.ink import density_axis, ink, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results" / "tickets"
CONTROLS = {
    "ticket": ("#000000", "o", "ticket"),
    "reinit": ("#D55E00", "s", "its mask, weights drawn anew"),
    "shuffle": ("#0072B2", "^", "its layers' counts, random places"),
    "random": ("#009E73", "D", "the same, weights drawn anew"),
    "invert": ("#CC79A7", "v", "scores inverted"),
}
Row = dict[str, str]


def read(stage: str) -> list[Row]:
    with open(RESULTS / f"{stage}.csv", newline="") as file:
        return list(csv.DictReader(file))


def curve(ax: Axes, rows: Sequence[Row], control: str, column: str) -> None:
    """One control's mean and range over density."""
    found: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row["control"] == control:
            found[round(float(row["density"]), 6)].append(float(row[column]))
    if not found:
        return
    color, marker, label = CONTROLS[control]
    x = sorted(found)
    low, high = [min(found[d]) for d in x], [max(found[d]) for d in x]
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(x, [fmean(found[d]) for d in x], color=color, marker=marker, markersize=4, label=label)


def levels(rows: list[Row]) -> str:
    """The three panels of The Lottery Ticket Hypothesis, Figs. 3 and 4."""
    panels = (
        ("stop_accuracy", "test accuracy at the early-stopping iteration"),
        ("accuracy", "test accuracy after training"),
        ("stop_step", "early-stopping iteration"),
    )
    with ink("levels"):
        figure = new_figure(13.0, 4.0)
        for ax, (column, title) in zip(figure.subplots(1, 3), panels, strict=True):
            for control in CONTROLS:
                dense = [row | {"control": control} for row in rows if float(row["density"]) == 1.0]
                own = [row for row in rows if float(row["density"]) < 1.0]
                curve(ax, own + dense, control, column) if any(r["control"] == control for r in own) else None
            density_axis(ax, 0.01)
            ax.set_title(title)
        figure.axes[0].legend(loc="lower right")
        return svg_text(figure, "levels")


def methods(rows: list[Row]) -> str:
    """A panel a method, as Rare Gems, Fig. 3."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    with ink("methods"):
        figure = new_figure(13.0, 6.4)
        axes = list(figure.subplots(2, -(-len(names) // 2), sharex=True, sharey=True).flat)
        for ax, name in zip(axes, names, strict=False):
            for control in CONTROLS:
                curve(ax, [row for row in rows if row["method"] == name], control, "accuracy")
            density_axis(ax, 0.005)
            ax.set_title(name)
        for ax in axes[len(names) :]:
            ax.set_axis_off()
        named = [ax.get_legend_handles_labels() for ax in figure.axes]
        handles = {name: line for lines, labels in named for line, name in zip(lines, labels, strict=True)}
        figure.axes[-1].legend(handles.values(), handles.keys(), loc="center")
        figure.supylabel("test accuracy after training", fontsize=10)
        return svg_text(figure, "methods")


def main() -> None:
    for stage, draw in {"levels": levels, "methods": methods}.items():
        path = RESULTS / f"{stage}.svg"
        path.write_text(draw(read(stage)))
        print(path)


if __name__ == "__main__":
    main()
