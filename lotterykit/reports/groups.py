"""Result rows sorted into figures: one group per setting, one series per method, one point per density."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lotterykit.errors import ArgumentError

Row = dict[str, Any]

# The rows' own axes: everything else in a spec is a condition that separates groups.
_AXES = ("method", "density", "seed", "rounds", "invert")
_MULTI_SHOT_ONLY = ("shots", "shot_epochs", "reset")
# Conditions that say nothing about the planted ticket itself: an oracle run may differ in them.
_NOT_THE_ORACLES = ("scope", *_MULTI_SHOT_ONLY)
_SHOWN_FIRST = ("pipeline", "task", "depth", "width", "gain")
_NEEDED = ("spec", "metrics", "density", "truth_density", "collapse", "recovery")
TASK_ORDER = ("circle", "relu", "helix")  # as in the paper
METHOD_ORDER = ("random", "magnitude", "snip", "grasp", "synflow", "edge-popup")


@dataclass(frozen=True)
class Stat:
    """Mean, least and greatest of the finite `values`; `total` counts the missing ones too."""

    mean: float
    low: float
    high: float
    n: int
    total: int


def stat(values: Iterable[float | None]) -> Stat:
    """`Stat` of numbers in which None and non-finite ones are missing (NaN where none is left)."""
    given = list(values)
    finite = [float(v) for v in given if v is not None and math.isfinite(v)]
    if not finite:
        return Stat(math.nan, math.nan, math.nan, 0, len(given))
    return Stat(math.fsum(finite) / len(finite), min(finite), max(finite), len(finite), len(given))


def number(row: Row, *path: str) -> float | None:
    """The number at `path` inside `row`, None where a step or the value is missing."""
    value: Any = row
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return None if value is None or isinstance(value, bool) else float(value)


@dataclass(frozen=True)
class Point:
    """The rows of one series at one asked density (a float or "truth"), over seeds."""

    asked: float | str
    rows: tuple[Row, ...]

    @property
    def density(self) -> float:
        """Mean achieved density, kept / total."""
        return stat(number(r, "density") for r in self.rows).mean

    @property
    def collapsed(self) -> int:
        """How many of the rows have no live path from input to output."""
        return sum(bool(r["collapse"].get("no_live_path")) for r in self.rows)

    @property
    def emptied(self) -> int:
        """How many of the rows have an empty layer."""
        return sum(bool(r["collapse"].get("empty_layers")) for r in self.rows)

    def stat(self, *path: str) -> Stat:
        """`Stat` over seeds of the number at `path`, e.g. `("metrics", "after", "accuracy")`."""
        return stat(number(r, *path) for r in self.rows)


@dataclass(frozen=True)
class Series:
    """One line of a figure: a method with its scoring rounds and direction."""

    method: str
    rounds: int
    invert: bool
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """The name in legends and tables: "synflow-100" for 100 rounds, "snip (inverted)"."""
        name = self.method if self.rounds == 1 else f"{self.method}-{self.rounds}"
        return f"{name} (inverted)" if self.invert else name


@dataclass(frozen=True)
class Group:
    """Everything that shares one set of conditions: the rows of one figure."""

    conditions: dict[str, Any]
    series: tuple[Series, ...]
    truth: tuple[Row, ...]
    truth_note: str
    slug: str
    extra: tuple[str, ...] = field(default=())  # conditions in which the groups of this report differ

    @property
    def rows(self) -> list[Row]:
        """The rows of all series, without the oracle's."""
        return [r for s in self.series for p in s.points for r in p.rows]

    @property
    def task(self) -> str:
        return str(self.conditions.get("task", "?"))

    @property
    def pipeline(self) -> str:
        return str(self.conditions.get("pipeline", "?"))

    @property
    def truth_density(self) -> float:
        """Mean density of the planted ticket, kept / total (NaN where unknown)."""
        return stat(number(r, "truth_density") for r in [*self.truth, *self.rows]).mean

    @property
    def classification(self) -> bool:
        """Whether the rows hold an accuracy (else a mean squared error)."""
        metrics = [r["metrics"].get(when) or {} for r in [*self.rows, *self.truth] for when in WHEN]
        return any("accuracy" in m for m in metrics)

    @property
    def seeds(self) -> list[int]:
        return sorted({r["spec"].get("seed", 0) for r in [*self.rows, *self.truth]})

    @property
    def title(self) -> str:
        """The heading: pipeline, the main conditions, and those in which groups differ."""
        names: list[str] = [n for n in ("depth", "width", "gain") if n in self.conditions]
        names += [n for n in self.extra if n not in _SHOWN_FIRST]
        return ", ".join([self.pipeline, *(f"{n} {say(self.conditions.get(n))}" for n in names)])

    def truth_stat(self, *path: str) -> Stat:
        """`Stat` over the oracle rows of the number at `path`."""
        return stat(number(r, *path) for r in self.truth)


WHEN = ("before", "after")


def groups(rows: Sequence[Row]) -> list[Group]:
    """`rows` (result dicts) as `Group`s, ordered by task, pipeline and conditions.

    Rows of method "oracle" become the ground truth of the group with their conditions; a group without
    its own borrows the one that differs only in what the planted ticket doesn't depend on, and says so.
    Raises `ArgumentError` for no rows and for a row without the needed fields.
    """
    check_rows(rows)
    buckets: dict[tuple, list[Row]] = {}
    for row in rows:
        buckets.setdefault(_key(row), []).append(row)
    order = sorted(buckets, key=_group_order)
    varying = _varying([dict(k) for k in order])
    oracles = {k: [r for r in buckets[k] if _is_oracle(r)] for k in order}
    made: list[Group] = []
    borrowed: set[tuple] = set()
    slugs: set[str] = set()
    for key in order:
        found = [r for r in buckets[key] if not _is_oracle(r)]
        if not found:
            continue
        truth, note, lender = _truth(key, oracles)
        if lender is not None:
            borrowed.add(lender)
        made.append(_group(key, found, truth, note, varying, slugs))
    for key, own in oracles.items():  # oracle runs that nobody compared with anything
        if own and key not in borrowed:
            made.append(_group(key, [], own, "", varying, slugs))
    made.sort(key=lambda g: _group_order(tuple(g.conditions.items())))
    return made


def check_rows(rows: Sequence[Row]) -> None:
    """Raises `ArgumentError` where `rows` is empty or a row lacks a field that a report reads."""
    if not rows:
        raise ArgumentError("no rows to report: the store holds no finished cell")
    for i, row in enumerate(rows):
        missing = [n for n in _NEEDED if not isinstance(row, dict) or row.get(n) is None]
        if missing:
            raise ArgumentError(f"row {i} is no result row: {', '.join(missing)} missing")
        if not row["spec"].get("method") or "density" not in row["spec"]:
            raise ArgumentError(f"row {i} is no result row: its spec names no method or no density")


def _is_oracle(row: Row) -> bool:
    return row["spec"]["method"] == "oracle"


def _key(row: Row) -> tuple:
    spec = row["spec"]
    skip = _AXES if spec.get("pipeline") == "multi-shot" else (*_AXES, *_MULTI_SHOT_ONLY)
    names = [n for n in _SHOWN_FIRST if n in spec]
    names += [n for n in sorted(spec) if n not in skip and n not in _SHOWN_FIRST]
    # a list or table in a spec becomes text: the key has to be hashable
    return tuple(
        (n, spec[n] if isinstance(spec[n], str | int | float | None) else repr(spec[n])) for n in names
    )


def _truth(key: tuple, oracles: dict[tuple, list[Row]]) -> tuple[list[Row], str, tuple | None]:
    """The oracle rows for the group `key`: its own, else the nearest that plants the same ticket."""
    if oracles.get(key):
        return oracles[key], "", key
    for extra, note in (((), ""), (("pipeline",), "The ground truth was trained by the other pipeline. ")):
        skip = {*_NOT_THE_ORACLES, *extra}
        wanted = [(n, v) for n, v in key if n not in skip]
        for other, own in oracles.items():
            if own and [(n, v) for n, v in other if n not in skip] == wanted:
                return own, note, other
    return [], "", None


def _group(
    key: tuple, found: list[Row], truth: list[Row], note: str, varying: list[str], slugs: set[str]
) -> Group:
    conditions = dict(key)
    shown = [n for n in varying if n in conditions]
    parts = [conditions.get("task", "task"), conditions.get("pipeline", "")]
    parts += [f"{n[0]}{say(conditions[n])}" for n in ("depth", "width", "gain") if n in conditions]
    parts += [f"{n}-{say(conditions[n])}" for n in shown if n not in _SHOWN_FIRST]
    base = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower()).strip("-.") or "group"
    slug, again = base, 2
    while slug in slugs:
        slug, again = f"{base}-{again}", again + 1
    slugs.add(slug)
    by_seed = sorted(truth, key=lambda r: r["spec"].get("seed", 0))
    return Group(conditions, _series(found), tuple(by_seed), note, slug, tuple(shown))


def _series(rows: list[Row]) -> tuple[Series, ...]:
    cells: dict[tuple[str, int, bool], dict[float | str, list[Row]]] = {}
    for row in rows:
        spec = row["spec"]
        name = (str(spec["method"]), int(spec.get("rounds") or 1), bool(spec.get("invert")))
        cells.setdefault(name, {}).setdefault(spec["density"], []).append(row)
    made = []
    for name in sorted(cells, key=lambda n: (method_rank(n[0]), n)):
        points = [
            Point(asked, tuple(sorted(own, key=lambda r: r["spec"].get("seed", 0))))
            for asked, own in cells[name].items()
        ]
        made.append(Series(*name, tuple(sorted(points, key=lambda p: (p.density, str(p.asked))))))
    return tuple(made)


def method_rank(method: str) -> int:
    """Place of `method` in legends and tables; unknown ones come last."""
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)


def _varying(keys: list[dict]) -> list[str]:
    names = dict.fromkeys(n for k in keys for n in k)
    return [
        n
        for n in names
        if (n not in _MULTI_SHOT_ONLY and len({repr(k.get(n)) for k in keys}) > 1)
        or (n in _MULTI_SHOT_ONLY and len({repr(k[n]) for k in keys if n in k}) > 1)
    ]


def _group_order(key: tuple) -> tuple:
    """Tasks together, single-shot first, then by the conditions (numbers before words)."""
    told = dict(key)
    task = str(told.get("task"))
    place = TASK_ORDER.index(task) if task in TASK_ORDER else len(TASK_ORDER)
    order = [(str(place), task), (str(told.get("pipeline") != "single-shot"), "")]
    for _name, value in key:
        numeric = isinstance(value, int | float)
        order.append((f"{float(value):020.9f}" if numeric else "~", str(value)))
    return tuple(order)


def say(value: object) -> str:
    """A setting's value as text: numbers without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)
