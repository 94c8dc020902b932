"""The information ladder: performance of masks that were told more and more of the planted ticket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lotterykit.reports.groups import Group
from lotterykit.reports.ink import TRUTH, ink, new_figure, power_axis, style, svg_text
from lotterykit.reports.points import Point
from lotterykit.reports.tables import truths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHEN = (("before", "before training (strong ticket)"), ("after", "after training (weak ticket)"))


def ladder_svg(group: Group, methods: Sequence[str]) -> str:
    """A rung each for what a mask was told, before and after training: SVG text.

    Dots are means over seeds, lines least to greatest; hollow ones have a seed without a live path.
    """
    slug = group.slug + "-metric"
    rungs: list[tuple[str, Point, dict[str, Any]]] = [
        (s.label, s.points[0], style(s, methods, group.values)) for s in group.series
    ]
    rungs += [(label, point, {"color": TRUTH, "marker": "*"}) for label, point in truths(group)]
    metric = "accuracy" if group.classification else "mse"
    with ink(slug):
        figure = new_figure(10.4, 0.9 + 0.42 * len(rungs))
        for ax, (when, title) in zip(figure.subplots(1, 2, sharey=True, sharex=True), _WHEN, strict=True):
            _panel(ax, rungs, ("metrics", when, metric))
            ax.set_title(title)
            ax.set_xlabel("test accuracy" if group.classification else "test MSE")
        return svg_text(figure, slug)


def _panel(ax: Axes, rungs: Sequence[tuple[str, Point, dict[str, Any]]], path: tuple[str, ...]) -> None:
    if path[-1] == "mse":
        power_axis(ax, "x")
    for place, (_, point, look) in enumerate(rungs):
        s = point.stat(*path)
        if not s.n:
            continue
        color = look["color"]
        ax.plot([s.low, s.high], [place, place], color=color, linewidth=3.0, alpha=0.45, zorder=3)
        face = "none" if point.collapsed else color
        ax.plot([s.mean], [place], linestyle="none", marker=look["marker"], color=color, markersize=8,
                markerfacecolor=face, markeredgewidth=1.4, zorder=4)  # fmt: skip
    ax.set_yticks(range(len(rungs)), [label for label, _, _ in rungs])
    ax.set_ylim(-0.6, len(rungs) - 0.4)
