"""Several sweeps in one report: their rows under labels, panels side by side, differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lotterykit.errors import ArgumentError
from lotterykit.reports.groups import Group
from lotterykit.reports.ink import Mark, ink, new_figure, svg_text
from lotterykit.reports.plots import legend, metric_panel
from lotterykit.reports.points import Point, Row, check_rows, is_oracle, measured, stat
from lotterykit.reports.tables import MISSING, metric_names, show, show_density, show_range

SWEEP = "sweep"  # the field of a row's spec that holds its sweep's label
SEPARATE = ("task", "pipeline", "method", "density", "seed", "rounds", "invert")  # never what a sweep is
COLUMNS = 3  # panels beside each other


def join(sweeps: Mapping[str, Sequence[Row]]) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """The rows of all sweeps with their label as `spec["sweep"]`, and each sweep's own settings.

    A setting that is the same in all of a sweep and differs between sweeps (as its learning rate) is told of
    the sweep and taken from the specs: it is what is compared, and must not keep the sweeps' figures apart.
    Raises `ArgumentError` for a sweep without rows.
    """
    values: dict[str, dict[str, set[str]]] = {}
    for label, rows in sweeps.items():
        if not rows:
            raise ArgumentError(f"no rows to report: sweep {label} holds no finished cell")
        check_rows(rows)
        found = values.setdefault(label, {})
        # an oracle has defaults where a setting says nothing about it
        for row in [r for r in rows if not is_oracle(r)] or rows:
            for name, value in row["spec"].items():
                found.setdefault(name, set()).add(repr(value))
    names = dict.fromkeys(name for found in values.values() for name in found if name not in SEPARATE)
    own = [
        name for name in names
        if all(len(found.get(name, ())) == 1 for found in values.values())
        and len({next(iter(found[name])) for found in values.values()}) > 1
    ]  # fmt: skip
    joined = [
        row
        | {"spec": {n: v for n, v in row["spec"].items() if n not in own} | {SWEEP: label}, "place": place}
        for place, (label, rows) in enumerate(sweeps.items())
        for row in rows
    ]
    first = {label: next((r for r in rows if not is_oracle(r)), rows[0]) for label, rows in sweeps.items()}
    return joined, {label: {name: row["spec"][name] for name in own} for label, row in first.items()}


def compared(group: Group) -> bool:
    """Whether `group` holds more than one sweep."""
    return group.overlay == SWEEP and len(group.values) > 1


def side_svg(group: Group, methods: Sequence[str]) -> str:
    """The metric of each sweep in a panel of its own, before and after training, on the same axes: SVG."""
    slug = group.slug + "-sweeps"
    marks: list[Mark] = []
    metric = metric_names(group)[0]
    parts = list(zip(group.values, group.parts, strict=True))
    columns = min(COLUMNS, len(parts))
    blocks = [parts[i : i + columns] for i in range(0, len(parts), columns)]
    with ink(slug):
        figure = new_figure(10.4, 0.9 + 5.4 * len(blocks))
        axes = figure.subplots(2 * len(blocks), columns, squeeze=False, sharex=True, sharey=True)
        for ax in axes.flat[2 * len(parts) :]:
            ax.set_axis_off()
        for block, placed in enumerate(blocks):
            for line, (when, kind) in enumerate((("before", "strong"), ("after", "weak"))):
                for column, (value, part) in enumerate(placed):
                    ax = axes[2 * block + line, column]
                    ax.set_axis_on()
                    metric_panel(ax, part, methods, ("metrics", when, metric), marks, group)
                    ax.set_title(f"{value}: {when} training ({kind} ticket)")
                    ax.set_ylabel("" if column else f"test {'accuracy' if group.classification else 'MSE'}")
                    ax.tick_params(labelbottom=True)
                    ax.set_xlabel(ax.get_xlabel() if line else "")
        legend(figure, group.parts[0], methods, bool(group.truth))
        return svg_text(figure, slug, marks)


def difference_table(group: Group) -> dict[str, Any] | None:
    """What every sweep gains on the first after training, method by method: None where nothing pairs.

    Differences are of cells with the same seed; their mean, least and greatest.
    """
    base, *others = group.values
    metric = metric_names(group)[0]
    points: dict[tuple[str, str], dict[Any, Point]] = {}
    for series in group.series:
        for point in series.points:
            sweep = series.overlay[1] if series.overlay else base
            points.setdefault((series.name, str(point.asked)), {})[sweep] = point
    lines = []
    for (name, _), found in points.items():
        if len(found) < 2:
            continue
        first = found.get(base)
        cells = [(name, ""), (show_density(next(iter(found.values()))), "")]
        cells.append(_mean(first, metric))
        for other in others:
            cells += [_mean(found.get(other), metric), _difference(first, found.get(other), metric)]
        lines.append(cells)
    if not lines:
        return None
    header = ["method", "density", str(base)]
    for other in others:
        header += [str(other), f"{other} minus {base}"]
    return {"header": header, "lines": lines}


def _mean(point: Point | None, metric: str) -> tuple[str, str]:
    if point is None:
        return MISSING, ""
    s = point.stat("metrics", "after", metric)
    return show(s.mean), show_range(s)


def _difference(first: Point | None, other: Point | None, metric: str) -> tuple[str, str]:
    if first is None or other is None:
        return MISSING, ""
    path = ("metrics", "after", metric)
    base = {r["spec"].get("seed", 0): measured(r, *path) for r in first.rows}
    pairs = [(base.get(r["spec"].get("seed", 0)), measured(r, *path)) for r in other.rows]
    s = stat(b - a for a, b in pairs if a is not None and b is not None)
    if not s.n:
        return MISSING, "no seed in both"
    known = show_range(s)
    return f"{'+' if s.mean > 0 else ''}{show(s.mean)}", f"{known + ', ' if known else ''}{s.n} pairs"
