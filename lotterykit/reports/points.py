"""Result rows as numbers: one `Point` per density, its `Stat`s over seeds, one `Series` per line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lotterykit.errors import ArgumentError

Row = dict[str, Any]

_NUMBER = (int, float)
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "spec": dict, "metrics": dict, "density": _NUMBER, "truth_density": _NUMBER, "collapse": dict,
    "recovery": dict,
}  # fmt: skip
# Settings that groups and series are made of, where a spec has them.
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "method": str, "density": (*_NUMBER, str), "seed": int, "rounds": int, "task": str, "pipeline": str,
}  # fmt: skip
METHOD_ORDER = (
    "random", "magnitude", "snip", "grasp", "synflow", "prospr", "edge-popup", "edge-popup-annealed",
    "edge-popup-global", "oracle-densities", "oracle-neurons", "oracle-less-50", "oracle-less-30",
    "oracle-less-10",
)  # fmt: skip
WHEN = ("before", "after")


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
    try:
        for step in path:
            value = value[step]
        return None if isinstance(value, bool) or not isinstance(value, _NUMBER) else float(value)
    except (KeyError, TypeError, OverflowError):  # TypeError: no dict
        return None


def measured(row: Row, *path: str) -> float | None:
    """`number`, but an untrained oracle's MSE is that of its output times the planted output scale.

    Below gain 1 the planted network computes the target divided by that scale, so only the product is
    the target; at gain 1 both are equal.
    """
    if path == ("metrics", "before", "mse") and is_oracle(row):
        known = "mse_planted_scale" in (row["metrics"].get("before") or {})
        path = (*path[:2], "mse_planted_scale") if known else path
    return number(row, *path)


def is_oracle(row: Row) -> bool:
    """Whether `row` is a run of the planted ticket itself."""
    return row["spec"]["method"] == "oracle"


def is_rung(method: str) -> bool:
    """Whether a method was told a part of the planted ticket (the information ladder): it finds nothing."""
    return method.startswith("oracle-")


@dataclass(frozen=True)
class Point:
    """The rows of one series at one asked density (a float or "truth"), over seeds."""

    asked: float | str
    rows: tuple[Row, ...]
    # figures, tables and sentences ask for the same numbers
    _known: dict[tuple[str, ...], Stat] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def density(self) -> float:
        """Mean achieved density, kept / total."""
        return stat(number(r, "density") for r in self.rows).mean

    @cached_property
    def collapsed(self) -> int:
        """How many of the rows have no live path from input to output."""
        return sum(bool(r["collapse"].get("no_live_path")) for r in self.rows)

    @property
    def alive(self) -> bool:
        """Whether any of the rows has a live path."""
        return self.collapsed < len(self.rows)

    @cached_property
    def emptied(self) -> int:
        """How many of the rows have an empty layer."""
        return sum(bool(r["collapse"].get("empty_layers")) for r in self.rows)

    def stat(self, *path: str) -> Stat:
        """`Stat` over seeds of the number at `path`, e.g. `("metrics", "after", "accuracy")`."""
        if path not in self._known:
            self._known[path] = stat(measured(r, *path) for r in self.rows)
        return self._known[path]


@dataclass(frozen=True)
class Series:
    """One line of a figure: a method with its scoring rounds and direction.

    `overlay` is the setting that line styles tell apart, with the series' value: ("reset", "never").
    """

    method: str
    rounds: int
    invert: bool
    points: tuple[Point, ...]
    overlay: tuple[str, Any] | None = None

    @property
    def name(self) -> str:
        """The method's name in legends: "synflow-100" for 100 rounds, "snip (inverted)"."""
        name = self.method if self.rounds == 1 else f"{self.method}-{self.rounds}"
        return f"{name} (inverted)" if self.invert else name

    @property
    def label(self) -> str:
        """The name in tables: `name`, and the overlay's value where there is one."""
        return f"{self.name}, {self.overlay[0]} {say(self.overlay[1])}" if self.overlay else self.name


def say(value: object) -> str:
    """A setting's value as text: numbers without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def method_rank(method: str) -> int:
    """Place of `method` in legends and tables; unknown ones come last."""
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)


def check_rows(rows: Sequence[Row]) -> None:
    """Raises `ArgumentError` where `rows` is empty or a row lacks a field that a report reads."""
    if not rows:
        raise ArgumentError("no rows to report: the store holds no finished cell")
    for i, row in enumerate(rows):
        missing = [n for n in _NEEDED if not isinstance(row, dict) or row.get(n) is None]
        if missing:
            raise ArgumentError(f"row {i} is no result row: {', '.join(missing)} missing")
        spec = row["spec"]
        wrong = [n for n, kind in _NEEDED.items() if not isinstance(row[n], kind)]
        wrong += [
            f"metrics.{n}" for n in WHEN if not wrong and not isinstance(row["metrics"].get(n) or {}, dict)
        ]
        if isinstance(spec, dict):
            if not spec.get("method") or spec.get("density") is None:
                raise ArgumentError(f"row {i} is no result row: its spec names no method or no density")
            wrong += [
                f"spec.{n}" for n, kind in _SETTINGS.items() if n in spec and not isinstance(spec[n], kind)
            ]
        if wrong:
            raise ArgumentError(
                f"row {i} is no result row: {', '.join(wrong)} of another type than a report reads"
            )
