"""Result rows as tables: CSV beside each figure, plain text for a terminal, cells for the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from lotterykit.reports.groups import Group, groups
from lotterykit.reports.points import WHEN, Point, Row, Stat, number, say, stat

METRIC_COLUMNS = (
    "when", "metric", "method", "asked_density", "density", "n", "finite", "mean", "min", "max",
    "no_live_path", "empty_layer",
)  # fmt: skip
RECOVERY_COLUMNS = ("quantity", "method", "asked_density", "density", "n", "mean", "min", "max")
LAYER_COLUMNS = (
    "method", "asked_density", "density", "layer", "parameter", "n", "mean", "min", "max", "empty",
    "no_live_path",
)  # fmt: skip
MISSING = "\u2013"
RECOVERED = (
    ("precision",),
    ("recall",),
    ("iou",),
    ("live", "precision"),
    ("live", "recall"),
    ("live", "iou"),
)


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """`lines` under `columns` as CSV with unix line ends; floats keep every digit, NaN is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in line])
    return out.getvalue()


def metric_names(group: Group) -> tuple[str, ...]:
    """What is drawn against density: accuracy, or the MSE as it stands and up to one scale."""
    return ("accuracy",) if group.classification else ("mse", "mse_scaled")


def metric_csv(group: Group) -> str:
    """Mean, min and max of each metric by method and density, before and after training."""
    lines: list[tuple] = []
    for when in WHEN:
        for metric in metric_names(group):
            path = ("metrics", when, metric)
            for series in group.series:
                for p in series.points:
                    s = p.stat(*path)
                    lines.append(
                        (when, metric, series.label, p.asked, p.density, s.total, s.n, s.mean, s.low, s.high,
                         p.collapsed, p.emptied)
                    )  # fmt: skip
            for label, p in truths(group):
                s = p.stat(*path)
                if group.rescaled and (when, metric) == ("before", "mse"):
                    label += " times its output scale"
                lines.append(
                    (when, metric, label, "truth", p.density, s.total, s.n, s.mean, s.low, s.high,
                     p.collapsed, p.emptied)
                )  # fmt: skip
    return csv_text(METRIC_COLUMNS, lines)


def truths(group: Group) -> list[tuple[str, Point]]:
    """(label, point) of the ground truth: one, or one for each value of the group's overlay; [] if none."""
    name = f"ground truth, {group.overlay} "
    told = [("ground truth" if v is None else name + say(v), rows) for v, rows in group.truths]
    return [(label, Point("truth", rows)) for label, rows in told]


def recovery_csv(group: Group) -> str:
    """Precision, recall and IoU of the planted weights, of all kept ones and of the live ones."""
    lines = []
    for path in RECOVERED:
        for series in group.series:
            for p in series.points:
                s = p.stat("recovery", *path)
                name = "_".join(path)
                lines.append((name, series.label, p.asked, p.density, s.n, s.mean, s.low, s.high))
    return csv_text(RECOVERY_COLUMNS, lines)


def layer_names(rows: Iterable[Row]) -> list[str]:
    """Names of the weight tensors of `rows` in network order."""
    names = dict.fromkeys(n for r in rows for n in r.get("kept") or {} if n.endswith("weight"))
    return sorted(names, key=lambda n: [(int(p), "") if p.isdigit() else (-1, p) for p in n.split(".")])


def layer_stat(rows: Sequence[Row], name: str) -> tuple[Stat, int]:
    """Density of layer `name` over `rows`, and in how many of them it is empty."""
    kept = [(r.get("kept") or {}).get(name) for r in rows]
    densities = [k / total if total else 0.0 for k, total in (pair for pair in kept if pair)]
    return stat(densities), sum(d == 0 for d in densities)


def layer_csv(group: Group) -> str:
    """Layerwise density by method and density, with the counts of empty layers and dead networks."""
    lines = []
    names = layer_names([*group.rows, *group.truth])
    found = truths(group) + [(s.label, p) for s in group.series for p in s.points]
    for label, p in found:
        for layer, name in enumerate(names, start=1):
            s, empty = layer_stat(p.rows, name)
            line = (label, p.asked, p.density, layer, name, s.n, s.mean, s.low, s.high, empty, p.collapsed)
            lines.append(line)
    return csv_text(LAYER_COLUMNS, lines)


def asked_densities(group: Group) -> list[tuple[float | str, float]]:
    """The asked densities of all series with their mean achieved value, in rising order."""
    found: dict[float | str, list[float]] = {}
    for s in group.series:
        for p in s.points:
            found.setdefault(p.asked, []).append(p.density)
    pairs = [(asked, stat(own).mean) for asked, own in found.items()]
    return sorted(pairs, key=lambda pair: (pair[1], str(pair[0])))


def at_truth(points: Sequence[Point]) -> Point | None:
    """The point asked for at the truth's density, if there is one."""
    return next((p for p in points if p.asked == "truth"), None)


# Why a number of the hiding table may not exist: see `lotterykit.planting.hiding`.
_UNKNOWN = {
    "max_sigma": "the mother's are 0",
    "median_sigma": "the mother's are 0",
    "auc": "every entry is planted",
}


def hiding_table(group: Group) -> list[list[str]]:
    """How well the planted weights hide, per parameter: means over seeds, header first; [] if unknown."""
    by_seed = {r["spec"].get("seed", 0): r["hiding"] for r in [*group.rows, *group.truth] if r.get("hiding")}
    if not by_seed:
        return []
    reports = [by_seed[s] for s in sorted(by_seed)]
    table = [["layer", "largest |w| / sigma", "median |w| / sigma", "AUC of |w|"]]
    layers = layer_names([*group.rows, *group.truth])
    for name in dict.fromkeys(n for h in reports for n in h):
        stem, _, kind = name.rpartition(".")
        weight = f"{stem}.weight" if stem else "weight"
        told = f"layer {layers.index(weight) + 1}, {kind} ({name})" if weight in layers else name
        cells = []
        for column, reason in _UNKNOWN.items():
            mean = stat(number(h, name, column) for h in reports).mean
            cells.append(reason if math.isnan(mean) else show(mean))
        table.append([told, *cells])
    return table


def show(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant places (22,500, not 2.25e+04), an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if 1000 <= abs(float(text)) < 1e7 else text


def row_name(group: Group, label: str, point: Point) -> str:
    """The name of a point's row in the tables of means, by which figures and tables refer to each other."""
    return f"{group.slug} {label} {say(point.asked)}"


def show_density(point: Point, digits: int = 3) -> str:
    """The density as it was asked for; the achieved one where "truth" was."""
    return show(point.density if isinstance(point.asked, str) else point.asked, digits)


def show_range(s: Stat) -> str:
    """The range behind a mean, "0.94 to 0.97", and how many of the values are finite if not all."""
    parts = [f"{show(s.low)} to {show(s.high)}"] if s.n > 1 and s.low < s.high else []
    parts += [f"{s.n} of {s.total} finite"] if s.n < s.total else []
    return ", ".join(parts)


def summary_rows(rows: Sequence[Row]) -> list[tuple[str, list[list[str]]]]:
    """(heading, table with header line) per group of `rows`: what `summary_table` prints.

    A table has a line per method: mean metric after training at each density, the strong ticket's metric
    and the recall at the truth's density. "*" marks cells in which a seed has no live path. Raises
    `ArgumentError` for no rows.
    """
    return [(_heading(g), _summary(g)) for g in groups(rows)]


def _notes(found: Iterable[Group]) -> list[str]:
    notes = ["untrained, recall: at the truth's density"]
    if any(g.rescaled and not g.classification for g in found):
        notes.append("gain < 1: the untrained ground truth's output is taken times its output scale")
    return notes


def summary_table(rows: Sequence[Row]) -> str:
    """`rows` as a compact plain-text table for a terminal; raises `ArgumentError` for no rows."""
    blocks = []
    marked = False
    found = groups(rows)
    for heading, table in [(_heading(g), _summary(g)) for g in found]:
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(_pad(line, widths)) for line in table]
        marked |= any(c.endswith("*") for line in table[1:] for c in line)
        blocks.append("\n".join([heading, "  " + lines[0], *("  " + text for text in lines[1:])]))
    notes = _notes(found)
    notes += ["* at least one seed has no live path from input to output"] if marked else []
    return "\n\n".join([*blocks, "\n".join(notes)])


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Cells of equal width per column: names to the left, numbers to the right."""
    return [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]


def _heading(group: Group) -> str:
    n = len(group.seeds)
    unit = "accuracy" if group.classification else "MSE"
    return f"{group.task}, {group.title} ({n} seed{'s' * (n != 1)}): mean test {unit} after training"


def _summary(group: Group) -> list[list[str]]:
    densities = asked_densities(group)
    metric = metric_names(group)[0]
    header = [
        f"truth {show(d)}" if asked == "truth" else show(d if isinstance(asked, str) else asked)
        for asked, d in densities
    ]
    table = [["density", *header, "| untrained", "recall"]]
    for series in group.series:
        by_asked = {p.asked: p for p in series.points}
        cells = [_cell(by_asked.get(asked), "metrics", "after", metric) for asked, _ in densities]
        truth = at_truth(series.points)
        cells += [
            "| " + _cell(truth, "metrics", "before", metric),
            _cell(truth, "recovery", "recall", mark=False),
        ]
        table.append([series.label, *cells])
    if group.truth:
        after = show(group.truth_stat("metrics", "after", metric).mean)
        before = show(group.truth_stat("metrics", "before", metric).mean)
        cells = [after if asked == "truth" else "" for asked, _ in densities]
        name = "ground truth" if after in cells else f"ground truth {after}"
        table.append([name, *cells, "| " + before, show(group.truth_stat("recovery", "recall").mean)])
    return table


def _cell(point: Point | None, *path: str, mark: bool = True) -> str:
    if point is None:
        return ""
    return show(point.stat(*path).mean) + ("*" if mark and point.collapsed else "")
