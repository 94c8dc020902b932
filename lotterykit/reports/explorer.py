"""The table of all results: columns as data that the page's script sorts, filters and shows by pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lotterykit.reports.groups import Group
from lotterykit.reports.points import Row, Series, measured, number, say
from lotterykit.reports.sections import Section

KEY_SHOWN = 12  # characters, as `sweep status` prints keys


def explorer_json(sections: Sequence[Section]) -> str:
    """All results of `sections`, each once, as JSON: a list per column, words as places in a list of words.

    {"columns": [{"name", "words", "at"} or {"name", "values"}, ...], "settings": {slug: word}}
    """
    found = list(_results(sections))
    columns: list[dict[str, Any]] = []
    for name, read in _columns(found):
        values = [read(*result) for result in found]
        if all(v is None for v in values):
            continue
        if any(isinstance(v, str) for v in values):
            words = list(dict.fromkeys(str(v) for v in values))
            places = {word: place for place, word in enumerate(words)}
            columns.append({"name": name, "words": words, "at": [places[str(v)] for v in values]})
        else:
            columns.append({"name": name, "values": [_short(v) for v in values]})
    settings = {g.slug: _setting(s, g) for s in sections for g in s.groups}
    text = json.dumps({"columns": columns, "settings": settings}, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c")  # so that no word ends the script element that holds it


Result = tuple[Section, Group, Series | None, Row]


def _results(sections: Sequence[Section]) -> Iterable[Result]:
    seen: set[int] = set()
    for section in sections:
        for group in section.groups:
            told = [(s, row) for s in group.series for p in s.points for row in p.rows]
            for series, row in [*told, *((None, row) for row in group.truth)]:
                if id(row) not in seen:
                    seen.add(id(row))
                    yield section, group, series, row


def _columns(found: Sequence[Result]) -> list[tuple[str, Callable[..., Any]]]:
    def of(*path: str) -> Callable[..., Any]:
        return lambda _section, _group, _series, row: measured(row, *path)

    metrics = dict.fromkeys(
        name
        for *_, row in found
        for name in ("accuracy", "mse")
        if name in (row["metrics"].get("after") or {})
    )
    told = {"accuracy": "accuracy", "mse": "MSE"}
    return [
        ("sweep", lambda _s, _g, _series, row: row["spec"].get("sweep")),
        ("setting", lambda section, group, _series, _row: _setting(section, group)),
        ("method", lambda _s, _g, series, _row: series.name if series else "ground truth"),
        ("asked", lambda _s, _g, _series, row: say(row["spec"]["density"])),
        ("density", of("density")),
        ("seed", lambda _s, _g, _series, row: row["spec"].get("seed", 0)),
        *((f"{told[m]} {when}", of("metrics", when, m)) for m in metrics for when in ("before", "after")),
        ("precision", of("recovery", "precision")),
        ("recall", of("recovery", "recall")),
        ("live IoU", of("recovery", "live", "iou")),
        ("live path", lambda _s, _g, _series, row: "no" if row["collapse"].get("no_live_path") else "yes"),
        ("seconds", lambda _s, _g, _series, row: number(row, "times", "total")),
        ("key", lambda _s, _g, _series, row: str(row.get("key"))[:KEY_SHOWN]),
    ]


def _setting(section: Section, group: Group) -> str:
    where = f"{section.name}, " if section.name else ""
    return f"{where}{group.task}: {group.title}"


def _short(value: float | None) -> float | int | None:
    """`value` to 4 significant places, whole numbers whole: every digit counts in large sweeps."""
    if value is None:
        return None
    short = value if isinstance(value, int) else float(f"{value:.4g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
