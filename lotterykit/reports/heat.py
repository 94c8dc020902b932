"""The layerwise densities as heat maps (P0 Fig. 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lotterykit.reports.groups import Group
from lotterykit.reports.ink import ink, new_figure, svg_text
from lotterykit.reports.points import Point
from lotterykit.reports.tables import layer_names, layer_stat, show, show_density, truths

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def layer_svg(group: Group) -> str:
    """Layerwise densities per method as heat maps: SVG text.

    A hatched cell with a cross holds an empty layer in some seed, the lowest row counts the seeds
    without a live path from input to output.
    """
    names = layer_names([*group.rows, *group.truth])
    shown: list[tuple[str, tuple[Point, ...]]] = [(label, (p,)) for label, p in truths(group)]
    shown += [(s.label, s.points) for s in group.series]
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
    ax.set_xticks(range(len(points)), [show_density(p, 2) for p in points])
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
