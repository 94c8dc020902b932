"""The sentences of a report: what was run, what is seen, and under which conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lotterykit.reports import tables
from lotterykit.reports.groups import Group, task_order
from lotterykit.reports.points import Point, Row, Series, number, say, stat

OVERVIEW = [
    "setting",
    "truth's density",
    "truth as planted",
    "truth trained",
    "best trained",
    "best recall",
    "no live path",
]
OVERVIEW_CAPTION = (
    "Mean test accuracy (circle) or MSE (relu, helix) over seeds. The last three columns are the methods' "
    "at the "
    "truth's density: the best after training, the largest share of planted weights, networks without a "
    "live path. Methods that collapsed in every seed are left out of the best; * marks one that collapsed "
    "in some. Below gain 1 the MSE of the truth as planted is that of its output times its output scale."
)
_NAMES = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "shot_epochs": "epochs per shot",
    "score_epochs": "epochs of score training",
    "score_lr": "learning rate of scores",
}
_SAID_APART = ("pipeline", "task")


def lead(found: Sequence[Group]) -> str:
    """The opening paragraph: what was planted, who looked for it, what came out."""
    tasks = dict.fromkeys(g.task for g in found)
    methods = dict.fromkeys(s.name for g in found for s in g.searched)
    several = "s" if len(tasks) > 1 else ""
    text = f"Sparse networks that solve the task{several} {_listed(tasks)} were planted in larger random ones"
    if not methods:
        return text + "; no method has searched for them yet."
    several = "s" if len(methods) > 1 else ""
    text += (
        f". The method{several} {_listed(methods)} then had to find a subnetwork as sparse and as good. "
        "Because the solution is known, every result can be compared with the truth: its performance, its "
        "density, and its very weights. "
    )
    planted = [g for g in found if not g.unplanted]
    tops = [(g, best(g, "recovery", "recall")) for g in planted]
    known = [(*top, g) for g, top in tops if top]
    if known:
        value, series, point, group = max(known, key=lambda item: item[0])
        text += (
            "At the planted density the largest share of the planted weights that a method with a live "
            f"path kept is {tables.show(value)} ({series.label} on {group.task}, {group.title}; mean over "
            f"seeds{_dead(point)}). "
        )
    points = [p for g in planted for s in g.searched for p in s.points if p.asked == "truth"]
    dead, total = sum(p.collapsed for p in points), sum(len(p.rows) for p in points)
    if total:
        text += f"{dead} of {total} networks pruned to the planted density have no live path left."
    return text.rstrip()


def facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, value) pairs about the runs: counts, seeds, time, versions."""
    seeds = sorted({r["spec"].get("seed", 0) for r in rows})
    seconds = math.fsum(number(r, "times", "total") or 0.0 for r in rows)
    told = [
        ("results", str(len(rows))),
        ("tasks", ", ".join(t for _, t in sorted({task_order(str(r["spec"].get("task"))) for r in rows}))),
        ("seeds", f"{len(seeds)} ({_ranges(seeds)})"),
        ("computing time", _duration(seconds)),
        ("result format", _several(rows, "results_version")),
    ]
    found: dict[str, set[str]] = {}
    for versions in {tuple((r.get("versions") or {}).items()) for r in rows}:
        for name, value in versions:
            found.setdefault(name, set()).add(str(value))
    return told + [(name, ", ".join(sorted(found[name]))) for name in sorted(found)]


def sweep_facts(rows: Sequence[Row], own: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, value) pairs about each compared sweep: how many results, and the settings that set it apart."""
    told = []
    for label, settings in own.items():
        count = sum(r["spec"].get("sweep") == label for r in rows)
        parts = [f"{_NAMES.get(n, n.replace('_', ' '))} {say(v)}" for n, v in settings.items()]
        told.append((f"sweep {label}", ", ".join([f"{count} results", *parts])))
    return told


def drawn_note(left_out: int) -> str:
    """What a page says where figures are left out; "" where none is."""
    if not left_out:
        return ""
    return (
        f"{left_out} figures of this large report are not drawn: what they would show is in the tables, and "
        "`lotterykit report --figures N` draws up to N."
    )


def version(rows: Sequence[Row]) -> str:
    """The lotterykit version(s) that made `rows`."""
    return _several(rows, "versions", "lotterykit")


def best(group: Group, *path: str, least: bool = False) -> tuple[float, Series, Point] | None:
    """The greatest (or `least`) mean of a series at the truth's density, None without one.

    A method whose networks are all without a live path is no candidate: a constant is no ticket.
    """
    found = []
    for series in group.searched:
        point = tables.at_truth(series.points)
        mean = point.stat(*path).mean if point else math.nan
        if point and point.alive and not math.isnan(mean):
            found.append((mean, series, point))
    pick = min if least else max
    return pick(found, key=lambda item: item[0]) if found else None


def _times(group: Group) -> str:
    """What the untrained ground truth's MSE is of, where that is not its output as it stands."""
    return " (times its output scale)" if group.rescaled and not group.classification else ""


def overview(group: Group) -> list[tuple[str, str]]:
    """The group's cells under `OVERVIEW`, each with its second line."""
    metric = tables.metric_names(group)[0]
    overlay = f", {group.overlay} overlaid" if group.overlay else ""
    cells = [(f"{group.task}: {group.title}{overlay}", ""), (tables.show(group.truth_density), "")]
    for when in ("before", "after"):
        means = stat(p.stat("metrics", when, metric).mean for _, p in tables.truths(group))
        several = means.n > 1 and means.low < means.high
        cells.append((tables.show_range(means) if several else tables.show(means.mean), ""))
    least = not group.classification
    for path, low in ((("metrics", "after", metric), least), (("recovery", "recall"), False)):
        top = best(group, *path, least=low)
        if top:
            cells.append((tables.show(top[0]), top[1].label + "*" * bool(top[2].collapsed)))
        else:
            cells.append((tables.MISSING, "all collapsed" if group.series else ""))
    points = [p for p in (tables.at_truth(s.points) for s in group.searched) if p]
    dead, total = sum(p.collapsed for p in points), sum(len(p.rows) for p in points)
    cells.append((f"{dead} of {total}" if total else tables.MISSING, ""))
    return cells


def conditions(group: Group) -> str:
    """Every setting of the group in one line."""
    parts = []
    for name, value in group.conditions.items():
        if name not in _SAID_APART:
            parts.append(f"{_NAMES.get(name, name.replace('_', ' '))} {say(value)}")
    if group.overlay:
        parts.append(f"{group.overlay} {_listed([say(v) for v in group.values])} (line styles)")
    n = len(group.seeds)
    return f"{n} seed{'s' * (n != 1)}; " + ", ".join(parts) + "."


def notes(group: Group) -> list[tuple[str, str]]:
    """(kind, sentence) findings of the group; kind "warn" for collapse and missing numbers, else ""."""
    told: list[tuple[str, str]] = []
    metric = tables.metric_names(group)[0]
    unit = "accuracy" if group.classification else "MSE"
    for label, point in tables.truths(group):
        before, after = (tables.show(point.stat("metrics", w, metric).mean) for w in ("before", "after"))
        told.append(
            ("", f"{label[0].upper()}{label[1:]} (density {tables.show(point.density)}): {unit} {before} as "
                 f"planted{_times(group)}, {after} after training.")
        )  # fmt: skip
    if not group.truth:
        told.append(("warn", "No ground truth: these results hold no oracle run with the same settings."))
    if group.ladder:
        return told + _rungs(group, metric, unit) + _warnings(group, metric)
    for when, kind in (("before", "strong"), ("after", "weak")):
        top = best(group, "metrics", when, metric, least=not group.classification)
        if top:
            value, series, point = top
            told.append(
                ("", f"Best {kind} ticket at the truth's density: {series.label}, {unit} "
                     f"{tables.show(value)} (mean{_dead(point)}).")
            )  # fmt: skip
    top = best(group, "recovery", "recall")
    if top:
        told.append(
            ("", f"Best recall there: {top[1].label}, {tables.show(top[0])} of the planted weights "
                 f"(mean{_dead(top[2])}).")
        )  # fmt: skip
    return told + _warnings(group, metric)


def _rungs(group: Group, metric: str, unit: str) -> list[tuple[str, str]]:
    """What each rung of the information ladder comes to."""
    told = []
    for series in group.series:
        point = series.points[0]
        before, after = (tables.show(point.stat("metrics", w, metric).mean) for w in ("before", "after"))
        told.append(f"{series.label} {before} before, {after} after training{_dead(point)}")
    return [("", f"Mean {unit}, from the least information to the most: " + "; ".join(told) + ".")]


def _dead(point: Point) -> str:
    return f"; no live path in {point.collapsed} of {len(point.rows)} seeds" if point.collapsed else ""


def _warnings(group: Group, metric: str) -> list[tuple[str, str]]:
    told = []
    dead = [_collapse(s) for s in group.series]
    dead = [text for text in dead if text]
    if dead:
        told.append(("warn", "No live path from input to output: " + "; ".join(dead) + "."))
    lost = sum(p.stat("metrics", w, metric).total - p.stat("metrics", w, metric).n
               for s in group.series for p in s.points for w in ("before", "after"))  # fmt: skip
    if lost:
        told.append(
            ("warn", f"{lost} metrics are not finite: they are left out of means and marked by triangles.")
        )
    return told


def _collapse(series: Series) -> str:
    parts = [
        f"{p.collapsed} of {len(p.rows)} at {tables.show_density(p, 2)}" for p in series.points if p.collapsed
    ]
    if not parts:
        return ""
    rounds = [number(r, "collapse", "round") for p in series.points for r in p.rows]
    first = stat(rounds)
    several = any(len(r.get("rounds") or ()) > 1 for p in series.points for r in p.rows)
    when = f" (first in round {first.low:g})" if first.n and several else ""
    return f"{series.label} " + ", ".join(parts) + when


def _listed(names: Sequence[str] | dict[str, None]) -> str:
    told = list(names)
    return told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]


def _several(rows: Sequence[Row], *path: str) -> str:
    found = set()
    for row in rows:
        value: object = row
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            found.add(str(value))
    return ", ".join(sorted(found)) or "unknown"


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
