"""The figures over density: metrics, recovery, layerwise densities (P0 Figs. 3, 4 and 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lotterykit.reports.groups import WHEN, Group, Point, Stat
from lotterykit.reports.ink import (
    REFERENCE,
    TRUTH,
    density_axis,
    ink,
    new_figure,
    power_axis,
    style,
    svg_text,
)
from lotterykit.reports.tables import layer_names, layer_stat, show

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
_RECOVERY_PANELS = (
    (("precision",), "precision"),
    (("recall",), "recall"),
    (("live", "iou"), "IoU of live paths"),
)


def metric_svg(group: Group, methods: Sequence[str]) -> str:
    """Metric against density, before and after training, with the ground truth: SVG text.

    Lines are means over seeds, bands least to greatest; a hollow marker says that a seed has no live
    path, a triangle at the upper edge that a seed's metric is not finite.
    """
    panels = _METRIC_PANELS[group.classification]
    with ink(group.slug + "-metric"):
        figure = new_figure(10.4, 4.1 if len(panels) == 2 else 7.4)
        axes = figure.subplots(len(panels) // 2, 2, squeeze=False, sharex=True)
        for ax, (when, metric, title) in zip(axes.flat, panels, strict=True):
            _metric_panel(ax, group, methods, ("metrics", when, metric))
            ax.set_title(title)
            if group.classification:
                ax.set_ylabel("test accuracy")
            else:
                ax.set_ylabel("test MSE, up to scale" if metric == "mse_scaled" else "test MSE")
        for ax in axes.flat[:-2]:
            ax.set_xlabel("")
        _legend(figure, group, methods, bool(group.truth), _lost_entry(group, panels))
        return svg_text(figure, group.slug + "-metric")


def _metric_panel(ax: Axes, group: Group, methods: Sequence[str], path: tuple[str, ...]) -> None:
    density_axis(ax, _lowest(group))
    if not group.classification:
        power_axis(ax)
    ax.set_ylim(*_limits(group, path[-1]))
    _truth_line(ax, group, group.truth_stat(*path))
    for place, series in enumerate(group.series):
        stats = [p.stat(*path) for p in series.points]
        look = style(series, methods)
        _line(ax, series.points, stats, look)
        lost = [p.density for p, s in zip(series.points, stats, strict=True) if s.total > s.n]
        edge = [0.97 - 0.035 * place] * len(lost)  # one level a method: triangles never hide each other
        at: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "linestyle": "none", "zorder": 5}
        ax.plot(lost, edge, marker=6, markersize=6, color=look["color"], **at)


def _line(ax: Axes, points: Sequence[Point], stats: Sequence[Stat], look: dict[str, Any]) -> None:
    """One series: band, mean line, and a marker per point (hollow where a seed is disconnected)."""
    shown = [(p, s) for p, s in zip(points, stats, strict=True) if s.n]
    x = [p.density for p, _ in shown]
    color = look["color"]
    if any(s.n > 1 for _, s in shown):
        ax.fill_between(
            x, [s.low for _, s in shown], [s.high for _, s in shown], color=color, alpha=0.15, lw=0
        )
    ax.plot(x, [s.mean for _, s in shown], color=color, linestyle=look["linestyle"], zorder=3)
    for hollow in (False, True):
        some = [(p.density, s.mean) for p, s in shown if bool(p.collapsed) is hollow]
        ax.plot(
            [d for d, _ in some], [m for _, m in some], linestyle="none", marker=look["marker"], color=color,
            markerfacecolor="white" if hollow else color, markeredgewidth=1.4, zorder=4,
        )  # fmt: skip


def _truth_line(ax: Axes, group: Group, s: Stat) -> None:
    if not math.isnan(group.truth_density):
        ax.axvline(group.truth_density, color=TRUTH, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
    if s.n:
        ax.axhline(s.mean, color=TRUTH, linewidth=1.3, linestyle=(0, (5, 2.5)), zorder=2.5)
        if s.high > s.low:
            ax.axhspan(s.low, s.high, color=TRUTH, alpha=0.08, lw=0)


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


def _legend(figure: Figure, group: Group, methods: Sequence[str], truth: bool, extra: Sequence = ()) -> None:
    from matplotlib.lines import Line2D

    entries = []
    for series in group.series:
        look = style(series, methods)
        entries.append(Line2D([], [], label=series.label, markeredgewidth=1.4, **look))
    if truth:
        line: dict[str, Any] = {"color": TRUTH, "linewidth": 1.3, "linestyle": (0, (5, 2.5))}
        entries.append(Line2D([], [], label="ground truth", **line))
    dots: dict[str, Any] = {"color": TRUTH, "linewidth": 0.9, "linestyle": (0, (1, 2))}
    if not math.isnan(group.truth_density):
        entries.append(Line2D([], [], label=f"truth's density, {show(group.truth_density)}", **dots))
    if any(p.collapsed for s in group.series for p in s.points):
        hollow: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "color": "#444444",
            "markerfacecolor": "white",
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
    with ink(group.slug + "-recovery"):
        from matplotlib.lines import Line2D

        figure = new_figure(10.4, 3.9)
        for ax, (path, title) in zip(figure.subplots(1, 3, sharey=True), _RECOVERY_PANELS, strict=True):
            density_axis(ax, _lowest(group))
            ax.set_ylim(-0.03, 1.03)
            _truth_line(ax, group, Stat(math.nan, math.nan, math.nan, 0, 0))
            _recovery_references(ax, group, path[-1], thin)
            for series in group.series:
                _line(
                    ax,
                    series.points,
                    [p.stat("recovery", *path) for p in series.points],
                    style(series, methods),
                )
            ax.set_title(title)
        figure.axes[0].set_ylabel("share of weights")
        extra = [
            Line2D([], [], label="expected of a random choice", linestyle=(0, (4, 1.5)), **thin),
            Line2D([], [], label="best possible at that density", linestyle="-", **thin),
        ]
        _legend(figure, group, methods, False, extra)
        return svg_text(figure, group.slug + "-recovery")


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


def layer_svg(group: Group) -> str:
    """Layerwise densities per method as heat maps: SVG text.

    A hatched cell with a cross holds an empty layer in some seed, the lowest row counts the seeds
    without a live path from input to output.
    """
    names = layer_names([*group.rows, *group.truth])
    shown: list[tuple[str, tuple[Point, ...]]] = [(s.label, s.points) for s in group.series]
    if group.truth:
        shown.insert(0, ("ground truth", (Point("truth", group.truth),)))
    with ink(group.slug + "-layers"):
        columns = min(3, len(shown))
        lines = math.ceil(len(shown) / columns)
        widest = max(len(points) for _, points in shown)
        figure = new_figure(10.4, 0.35 + lines * (0.85 + 0.3 * (len(names) + 1)))
        axes = figure.subplots(lines, columns, squeeze=False)
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        for i, (label, points) in enumerate(shown):
            ax = axes.flat[i]
            _heat(ax, points, names, widest)
            ax.set_title(label)
            if i % columns:
                ax.set_yticklabels([])
            if i + columns >= len(shown):
                ax.set_xlabel("density (kept / total)")
        return svg_text(figure, group.slug + "-layers")


def _heat(ax: Axes, points: Sequence[Point], names: Sequence[str], columns: int) -> None:
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    for column, p in enumerate(points):
        for line, name in enumerate(names):
            s, empty = layer_stat(p.rows, name)
            text = f"\u00d7 {empty} of {s.n}" if empty else show(s.mean, 2)
            _heat_cell(ax, column, line, s.mean, text, flagged=bool(empty))
        dead = p.collapsed
        text = f"\u00d7 {dead} of {len(p.rows)}" if dead else "none"
        _heat_cell(ax, column, len(names) + 0.25, None, text, flagged=bool(dead))
    ax.set_xlim(-0.5, max(columns, 2) - 0.5)
    ax.set_ylim(len(names) + 0.8, -0.55)
    ax.set_xticks(range(len(points)), [show(p.density, 2) for p in points])
    labels = [*(f"layer {i + 1}" for i in range(len(names))), "no live path"]
    ax.set_yticks([*range(len(names)), len(names) + 0.25], labels)


def _heat_cell(ax: Axes, x: float, y: float, density: float | None, text: str, *, flagged: bool) -> None:
    """One cell: shade by log density (three decades), hatched where `flagged`."""
    import matplotlib
    from matplotlib.patches import Rectangle

    shade: Any = "#FFFFFF" if density is None or not density > 0 else None
    strength = 0.0
    if shade is None and density is not None:
        strength = min(1.0, max(0.0, 1 + math.log10(density) / 3))
        shade = matplotlib.colormaps["Blues"](0.08 + 0.8 * strength)
    hatch = "////" if flagged else None
    box: dict[str, Any] = {
        "facecolor": shade,
        "edgecolor": "#7A1F1F" if flagged else "#D0D0D0",
        "linewidth": 0.8,
    }
    ax.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, hatch=hatch, **box))
    color = "#7A1F1F" if flagged else ("#FFFFFF" if strength > 0.7 else "#222222")
    plate = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.12"} if flagged else None
    weight = "bold" if flagged else "normal"
    ax.text(x, y, text, ha="center", va="center", fontsize=8.0, color=color, weight=weight, bbox=plate)
