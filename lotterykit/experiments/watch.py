"""`Watch`: where the sweeps of a store stand, read again and again while another process writes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lotterykit.errors import unknown_name
from lotterykit.experiments.forecast import work
from lotterykit.experiments.lock import writer_of
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store

WINDOW_SECONDS = 600.0  # of the newest rows that tell how fast it goes
ALWAYS = ("method", "density")  # what lines differ in; these besides, where cells do
OFTEN = ("task", "pipeline", "gain", "depth", "width")


@dataclass(frozen=True)
class Line:
    """The cells that share `values` of the settings a `Watch` sorts by."""

    values: tuple[Any, ...]
    done: int
    failed: int
    wanted: int

    @property
    def missing(self) -> int:
        """Neither done nor failed: under way, not begun, or damaged."""
        return self.wanted - self.done - self.failed


@dataclass(frozen=True)
class Standing:
    """One look at a store. `writer` is the process that writes it, None where none does; `rate` in cells a
    second and `remaining` in seconds are of that process, None while unknown."""

    by: tuple[str, ...]
    lines: tuple[Line, ...]
    damaged: dict[str, str]  # key -> fault
    failures: dict[str, tuple[str, int]]  # key -> (error, attempts)
    writer: int | None
    rate: float | None
    remaining: float | None

    @property
    def done(self) -> int:
        return sum(line.done for line in self.lines)

    @property
    def failed(self) -> int:
        return sum(line.failed for line in self.lines)

    @property
    def wanted(self) -> int:
        return sum(line.wanted for line in self.lines)

    @property
    def over(self) -> bool:
        """Whether nothing is left to wait for: all is done, or the rest failed and nobody tries again."""
        left = self.wanted - self.done
        return not left or (left == self.failed and self.writer is None)


class Watch:
    """Looks at an open `store`, cells sorted by the settings `by` (all that differ, seeds not, by default).

    The first look checks every row; later ones read only what was written since. Raises `ArgumentError`
    for a name that is no setting of a cell.
    """

    def __init__(self, store: Store, by: Sequence[str] = ()) -> None:
        for name in by:
            if name not in CellSpec.model_fields:
                raise unknown_name("setting", name, CellSpec.model_fields)
        self._store = store
        self._by = tuple(by)
        self._cells: dict[str, CellSpec] = {}
        self._work: dict[str, float] = {}
        self._done: set[str] = set()
        self._damaged: dict[str, str] = {}
        self._written: dict[str, tuple[float, float]] = {}  # key -> Unix time, seconds of computing
        self._planned = self._last = 0

    def look(self) -> Standing:
        """Where everything stands now."""
        writer = writer_of(self._store.path)  # first: who has gone after it has left its last rows
        self._read_rows()
        self._read_plan()
        failures = {k: v for k, v in self._store.failures().items() if k in self._cells.keys() - self._done}
        rate, remaining = self._speed(writer[1], failures) if writer else (None, None)
        by = self._by or self._settings()
        return Standing(
            by, self._lines(by, failures), dict(self._damaged), failures, writer and writer[0],
            rate, remaining,
        )  # fmt: skip

    def _read_rows(self) -> None:
        for number, key, written_at, seconds in self._store.committed(self._last):
            self._last = number
            if key in self._cells:
                self._done.add(key)
                self._damaged.pop(key, None)
            self._written[key] = (datetime.fromisoformat(written_at).timestamp(), seconds or 0.0)

    def _read_plan(self) -> None:
        count = self._store.planned_count()
        if count == self._planned:
            return
        self._planned = count
        new = {cell.key(): cell for cell in self._store.planned()}
        new = {key: cell for key, cell in new.items() if key not in self._cells}
        good, bad = self._store.done(new.values())
        self._cells |= new
        self._work |= {key: work(cell) for key, cell in new.items()}
        self._done |= {cell.key() for cell in good}
        self._damaged |= {cell.key(): fault for cell, fault in bad.items()}

    def _settings(self) -> tuple[str, ...]:
        cells = self._cells.values()
        differ = [name for name in OFTEN if len({getattr(cell, name) for cell in cells}) > 1]
        return (*differ, *ALWAYS)

    def _lines(self, by: Sequence[str], failures: dict[str, Any]) -> tuple[Line, ...]:
        counts: dict[tuple, list[int]] = {}
        for key, cell in self._cells.items():
            count = counts.setdefault(tuple(getattr(cell, name) for name in by), [0, 0, 0])
            count[0] += key in self._done
            count[1] += key in failures
            count[2] += 1
        places = [
            {value: i for i, value in enumerate(dict.fromkeys(names))} for names in zip(*counts, strict=True)
        ]

        def order(values: tuple) -> tuple:  # names as they were planned, numbers rising
            return tuple(
                (isinstance(v, str), place[v] if isinstance(v, str) else v)
                for v, place in zip(values, places, strict=True)
            )

        return tuple(Line(values, *counts[values]) for values in sorted(counts, key=order))

    def _speed(self, began: float, failures: dict[str, Any]) -> tuple[float | None, float | None]:
        """Cells a second, and seconds until the rest is done, from the newest rows of who began then."""
        now = time.time()
        since = max(began, now - WINDOW_SECONDS)
        recent = [key for key, (at, _) in self._written.items() if at >= since]
        if not recent or now <= since:
            return None, None
        rate = len(recent) / (now - since)
        missing = [key for key in self._cells if key not in self._done and key not in failures]
        costs = self._costs()
        spent = sum(costs(key) for key in recent if key in self._cells)
        remaining = sum(map(costs, missing)) * (now - since) / spent if spent else None
        return rate, 0.0 if not missing else remaining

    def _costs(self) -> Any:
        """A cell's seconds of computing: its row's, else those of rows alike, in proportion to the guess."""
        measured: dict[tuple, list[float]] = {}
        for key, (_, seconds) in self._written.items():
            if key in self._cells and seconds > 0:
                for kind in (_kind(self._cells[key]), ()):
                    total = measured.setdefault(kind, [0.0, 0.0])
                    total[0] += seconds
                    total[1] += self._work[key]

        def cost(key: str) -> float:
            seconds = self._written.get(key, (0.0, 0.0))[1] if key in self._done else 0.0
            known = measured.get(_kind(self._cells[key])) or measured.get(()) or [1.0, 1.0]
            return seconds if seconds > 0 else self._work[key] * known[0] / known[1]

        return cost


def _kind(cell: CellSpec) -> tuple:
    return (cell.pipeline, cell.task, cell.method, cell.depth, cell.width)
