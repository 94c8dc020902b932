"""The figures over density: metrics and recovery (P0 Figs. 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lotterykit.reports.groups import Group
from lotterykit.reports.ink import (
    REFERENCE,
    TRUTH,
    dash,
    density_axis,
    ink,
    new_figure,
    power_axis,
    style,
    svg_text,
)
from lotterykit.reports.marks import Mark, mark, told_of
from lotterykit.reports.points import WHEN, Point, Series, say
from lotterykit.reports.tables import row_name, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEFORE, _AFTER = "before training (strong ticket)", "after training (weak ticket)"
_METRIC_PANELS = {
    True: (("before", "accuracy", _BEFORE), ("after", "accuracy", _AFTER)),
    False: (
        ("before", "mse", _BEFORE),
        ("after", "mse", _AFTER),
        ("before", "mse_scaled", f"{_BEFORE}, up to scale"),
        ("after", "mse_scaled", f"{_AFTER}, up to scale"),
    ),
}
_TRUTH_DASHES = (0, (5, 2.5))
_STAR: dict[str, Any] = {
    "marker": "*", "markersize": 13, "color": TRUTH, "markeredgecolor": "white", "markeredgewidth": 0.7,
}  # fmt: skip
_RECOVERY_PANELS = (
    (("precision",), "precision"),
    (("recall",), "recall"),
    (("live", "iou"), "IoU of live paths"),
)


def metric_svg(group: Group, methods: Sequence[str]) -> str:
    """Metric against density, before and after training, with the ground truth: SVG text.

    Lines are means over seeds, bands least to greatest; a star is the ground truth, a hollow marker says
    that a seed has no live path, a triangle at the upper edge that a seed's metric is not finite.
    """
    panels = _METRIC_PANELS[group.classification]
    marks: list[Mark] = []
    with ink(group.slug + "-metric"):
        figure = new_figure(10.4, 4.1 if len(panels) == 2 else 7.4)
        axes = figure.subplots(len(panels) // 2, 2, squeeze=False, sharex=True)
        for ax, (when, metric, title) in zip(axes.flat, panels, strict=True):
            metric_panel(ax, group, methods, ("metrics", when, metric), marks)
            ax.set_title(title)
            if group.classification:
                ax.set_ylabel("test accuracy")
            else:
                ax.set_ylabel("test MSE, up to scale" if metric == "mse_scaled" else "test MSE")
        for ax in axes.flat[:-2]:
            ax.set_xlabel("")
        legend(figure, group, methods, bool(group.truth), _lost_entry(group, panels))
        return svg_text(figure, group.slug + "-metric", marks)


def metric_panel(
    ax: Axes,
    group: Group,
    methods: Sequence[str],
    path: tuple[str, ...],
    marks: list[Mark],
    whole: Group | None = None,
) -> None:
    """One metric of `group` against density; its axes are those of `whole`, of which it may be a part."""
    whole = whole or group
    density_axis(ax, _lowest(whole))
    if not whole.classification:
        power_axis(ax)
    ax.set_ylim(*_limits(whole, path[-1]))
    _truth_lines(ax, group, path, marks)
    for place, series in enumerate(group.series):
        stats = [p.stat(*path) for p in series.points]
        look = style(series, methods, group.values)
        _line(ax, series, path, look, marks, group, whole)
        lost = [p.density for p, s in zip(series.points, stats, strict=True) if s.total > s.n]
        edge = [0.97 - 0.035 * place] * len(lost)  # one level a method: triangles never hide each other
        at: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "linestyle": "none", "zorder": 5}
        ax.plot(lost, edge, marker=6, markersize=6, color=look["color"], **at)


def _line(
    ax: Axes,
    series: Series,
    path: tuple[str, ...],
    look: dict[str, Any],
    marks: list[Mark],
    group: Group,
    whole: Group,
) -> None:
    """One series of `group`: band, mean line, and a marker per point (hollow where a seed is disconnected).

    Figures with many lines have fainter bands and thinner lines.
    """
    light = group.overlay is not None
    shown = [(p, s) for p in series.points if (s := p.stat(*path)).n]
    x = [p.density for p, _ in shown]
    color = look["color"]
    if any(s.n > 1 for _, s in shown):
        ax.fill_between(
            x, [s.low for _, s in shown], [s.high for _, s in shown], color=color, lw=0,
            alpha=0.04 if light else 0.15,
        )  # fmt: skip
    width = 1.3 if light else 1.8
    ax.plot(x, [s.mean for _, s in shown], color=color, linestyle=look["linestyle"], lw=width, zorder=3)
    for point, s in shown:
        hollow = bool(point.collapsed)
        # hollow ones are larger and above all solid ones, and let what is below them through
        mark(
            ax, marks, (point.density, s.mean), told_of(group, whole, series, point, path),
            marker=look["marker"], color=color,
            markerfacecolor="none" if hollow else color, markeredgewidth=1.4 if hollow else 0.6,
            markersize=8.5 if hollow else 5.5, zorder=4.5 if hollow else 4,
        )  # fmt: skip


def _truth_density(ax: Axes, group: Group) -> None:
    if not math.isnan(group.truth_density):
        ax.axvline(group.truth_density, color=TRUTH, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)


def _truth_lines(ax: Axes, group: Group, path: tuple[str, ...], marks: list[Mark]) -> None:
    """The truth's density, and its metric as a line and a star (one for each value of an overlay)."""
    _truth_density(ax, group)
    for value, rows in group.truths:
        point = Point("truth", rows)
        s = point.stat(*path)
        if not s.n:
            continue
        dashes = _TRUTH_DASHES if value is None else dash(value, group.values)
        ax.axhline(s.mean, color=TRUTH, linewidth=1.3, linestyle=dashes, zorder=2.5)
        if s.high > s.low:
            ax.axhspan(s.low, s.high, color=TRUTH, alpha=0.08 if value is None else 0.04, lw=0)
        name = "ground truth" if value is None else f"ground truth, {group.overlay} {say(value)}"
        text = f"{name}, density {show(point.density)}\n{' '.join(path[1:])} {show(s.mean)}"
        mark(ax, marks, (point.density, s.mean), Mark({"row": row_name(group, name, point)}, text), zorder=6,
             **_STAR)  # fmt: skip


def _lowest(group: Group) -> float:
    known = [p.density for s in group.series for p in s.points] + [group.truth_density]
    positive = [d for d in known if d > 0 and math.isfinite(d)]
    return min(positive, default=0.1)


def _limits(group: Group, metric: str) -> tuple[float, float]:
    """The y range of a metric: before and after training are compared by eye, so they share one."""
    stats = [group.truth_stat("metrics", when, metric) for when in WHEN]
    stats += [p.stat("metrics", when, metric) for when in WHEN for s in group.series for p in s.points]
    if group.classification:
        low = min((s.low for s in stats if s.n), default=0.0)
        return max(0.0, math.floor(low * 10) / 10) - 0.02, 1.02
    low = min((s.low for s in stats if s.n and s.low > 0), default=1e-3)
    high = max((s.high for s in stats if s.n and s.high > 0), default=1.0)
    room = (high / low) ** 0.2 if any(s.total > s.n for s in stats) else 1.0  # for the triangles
    return low / 1.6, high * 1.6 * room


def legend(figure: Figure, group: Group, methods: Sequence[str], truth: bool, extra: Sequence = ()) -> None:
    """The key of a figure, above it: methods, the overlay's line styles, the truth and what `extra` holds."""
    from matplotlib.lines import Line2D

    entries: list[Line2D] = []
    for series in {s.name: s for s in reversed(group.series)}.values():
        look = style(series, methods, group.values) | ({"linestyle": "-"} if group.overlay else {})
        entries.insert(0, Line2D([], [], label=series.name, **look))
    if group.overlay:
        for value in group.values:
            own: dict[str, Any] = {"color": "#444444", "linestyle": dash(value, group.values)}
            entries.append(Line2D([], [], label=f"{group.overlay} {say(value)}", **own))
    if truth:
        dashes = "-" if len(group.truths) > 1 else _TRUTH_DASHES
        line: dict[str, Any] = {"linewidth": 1.3, "linestyle": dashes}
        entries.append(Line2D([], [], label="ground truth", **line, **_STAR))
    dots: dict[str, Any] = {"color": TRUTH, "linewidth": 0.9, "linestyle": (0, (1, 2))}
    if not math.isnan(group.truth_density):
        entries.append(Line2D([], [], label=f"truth's density, {show(group.truth_density)}", **dots))
    if any(p.collapsed for s in group.series for p in s.points):
        hollow: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "color": "#444444",
            "markerfacecolor": "none",
            "markersize": 8.5,
        }
        entries.append(Line2D([], [], label="hollow: no live path in a seed", markeredgewidth=1.4, **hollow))
    entries += extra
    figure.legend(handles=entries, loc="outside upper center", ncols=5, columnspacing=1.6, handlelength=2.4)


def _lost_entry(group: Group, panels: Sequence[tuple[str, str, str]]) -> list[Any]:
    """The legend entry of the triangles, where there are any."""
    from matplotlib.lines import Line2D

    points = [p for s in group.series for p in s.points]
    stats = [p.stat("metrics", when, metric) for p in points for when, metric, _ in panels]
    if all(s.n == s.total for s in stats):
        return []
    return [
        Line2D([], [], linestyle="none", marker=6, color="#444444", label="triangle: not finite in a seed")
    ]


def recovery_svg(group: Group, methods: Sequence[str]) -> str:
    """Precision, recall and live IoU of the planted weights against density: SVG text.

    Thin lines show a random choice's expectation (recall = density, precision = the truth's density)
    and the best that any choice of so many weights can reach.
    """
    thin: dict[str, Any] = {"color": REFERENCE, "linewidth": 1.1}
    marks: list[Mark] = []
    with ink(group.slug + "-recovery"):
        from matplotlib.lines import Line2D

        figure = new_figure(10.4, 3.9)
        for ax, (path, title) in zip(figure.subplots(1, 3, sharey=True), _RECOVERY_PANELS, strict=True):
            density_axis(ax, _lowest(group))
            ax.set_ylim(-0.03, 1.03)
            _truth_density(ax, group)
            _recovery_references(ax, group, path[-1], thin)
            for series in group.series:
                look = style(series, methods, group.values)
                _line(ax, series, ("recovery", *path), look, marks, group, group)
            ax.set_title(title)
        figure.axes[0].set_ylabel("share of weights")
        extra = [
            Line2D([], [], label="expected of a random choice", linestyle=(0, (4, 1.5)), **thin),
            Line2D([], [], label="best possible at that density", linestyle="-", **thin),
        ]
        legend(figure, group, methods, False, extra)
        return svg_text(figure, group.slug + "-recovery", marks)


def _recovery_references(ax: Axes, group: Group, quantity: str, look: dict[str, Any]) -> None:
    truth = group.truth_density
    if math.isnan(truth) or truth <= 0:
        return
    low = _lowest(group)
    d = [low * (1 / low) ** (i / 80) for i in range(81)]
    best = {
        "precision": [min(1.0, truth / x) for x in d],
        "recall": [min(1.0, x / truth) for x in d],
    }.get(quantity)
    if best is None:  # a live part may be far smaller than what is kept: density bounds nothing
        return
    ax.plot(d, best, linestyle="-", zorder=1.8, **look)
    chance = [truth] * len(d) if quantity == "precision" else d
    ax.plot(d, chance, linestyle=(0, (4, 1.5)), zorder=1.8, **look)
