"""The table of all results: columns as data that the page's script sorts, filters and shows by pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from lotterykit.reports.groups import Group
from lotterykit.reports.points import Row, measured, say
from lotterykit.reports.sections import Section

KEY_SHOWN = 12  # characters, as `sweep status` prints keys


def explorer_json(sections: Sequence[Section]) -> str:
    """All results of `sections`, each once, as JSON: a list per column, words as places in a list of words.

    {"columns": [{"name", "words", "at"} or {"name", "values"}, ...], "settings": {slug: word}}
    """
    found = list(_results(sections))
    columns = [_words(name, [read(*result) for result in found]) for name, read in _WORDS]
    for name, path in _paths(found):
        values = [measured(row, *path) for _, _, row in found]
        if any(v is not None for v in values):
            columns.append(f'{{"name":{json.dumps(name)},"values":[{",".join(map(_short, values))}]}}')
    columns.append(_words("key", [str(row.get("key"))[:KEY_SHOWN] for _, _, row in found]))
    settings = {g.slug: _setting(s, g) for s in sections for g in s.groups}
    shown = ",".join(column for column in columns if column)
    text = f'{{"columns":[{shown}],"settings":{json.dumps(settings)}}}'
    return text.replace("<", "\\u003c")  # so that no word ends the script element that holds it


Result = tuple[str, str, Row]  # setting, method


def _results(sections: Sequence[Section]) -> Iterable[Result]:
    seen: set[int] = set()
    for section in sections:
        for group in section.groups:
            setting = _setting(section, group)
            told = [(s.name, row) for s in group.series for p in s.points for row in p.rows]
            for method, row in [*told, *(("ground truth", row) for row in group.truth)]:
                if id(row) not in seen:
                    seen.add(id(row))
                    yield setting, method, row


_WORDS: tuple[tuple[str, Callable[[str, str, Row], str | None]], ...] = (
    ("sweep", lambda _setting, _method, row: row["spec"].get("sweep")),
    ("setting", lambda setting, _method, _row: setting),
    ("method", lambda _setting, method, _row: method),
    ("asked", lambda _setting, _method, row: say(row["spec"]["density"])),
    ("live path", lambda _setting, _method, row: "no" if row["collapse"].get("no_live_path") else "yes"),
)


def _paths(found: Sequence[Result]) -> list[tuple[str, tuple[str, ...]]]:
    """The columns of numbers: names, and where a row holds them."""
    known = {name for *_, row in found for name in row["metrics"].get("after") or ()}
    told = {"accuracy": "accuracy", "mse": "MSE"}
    return [
        ("density", ("density",)),
        ("seed", ("spec", "seed")),
        *(
            (f"{told[m]} {when}", ("metrics", when, m))
            for m in told if m in known for when in ("before", "after")
        ),
        ("precision", ("recovery", "precision")),
        ("recall", ("recovery", "recall")),
        ("live IoU", ("recovery", "live", "iou")),
        ("seconds", ("times", "total")),
    ]  # fmt: skip


def _words(name: str, values: Sequence[str | None]) -> str:
    """A column of words as JSON, "" where there are none."""
    words = dict.fromkeys(value for value in values if value is not None)
    if not words:
        return ""
    places = {word: str(place) for place, word in enumerate(words)}
    at = ",".join(places[value or ""] for value in values)
    return f'{{"name":{json.dumps(name)},"words":{json.dumps(list(words))},"at":[{at}]}}'


def _setting(section: Section, group: Group) -> str:
    where = f"{section.name}, " if section.name else ""
    return f"{where}{group.task}: {group.title}"


def _short(value: float | None) -> str:
    """`value` as JSON with 4 significant digits, whole numbers whole: every digit counts in large sweeps."""
    if value is None:
        return "null"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
