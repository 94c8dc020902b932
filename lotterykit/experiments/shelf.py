"""`Shelf`: data sets that several batches read, each drawn once and kept in Ray's object store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import Task, data_sets


class Shelf:
    """A data set is drawn by a Ray task when the first of its batches runs, so that a lost node's are drawn
    again by Ray, and dropped when the last of them is done. One that a single batch reads is not worth it."""

    def __init__(self, batches: Sequence[list[CellSpec]], runner: str, options: dict[str, Any]) -> None:
        import ray

        self._sets = data_sets(runner)
        self._draw = ray.remote(**options)(draw)
        self._runner = runner
        self._readers: Counter[Hashable] = Counter()
        self._drawn: dict[Hashable, Any] = {}
        for batch in batches:
            self._readers.update(self._keys(batch))
        self._shared = {key for key, count in self._readers.items() if count > 1}

    def _keys(self, cells: list[CellSpec]) -> list[Hashable]:
        """Each once, in order."""
        return [] if self._sets is None else list(dict.fromkeys(map(self._sets.key, cells)))

    def take(self, task: Task) -> dict[Hashable, Any]:
        """What `task` reads of the shelf, by key. A cell that is tried again draws for itself: a data set
        that cannot be drawn fails with its reason."""
        if task.attempts:
            return {}
        keys = [key for key in self._keys(task.cells) if key in self._shared]
        for key in keys:
            if key not in self._drawn:
                self._drawn[key] = self._draw.remote(self._runner, key, list(sys.path))
        return {key: self._drawn[key] for key in keys}

    def leave(self, task: Task) -> None:
        """`task` as a whole needs its data no more."""
        if task.attempts:
            return
        for key in self._keys(task.cells):
            self._readers[key] -= 1
            if not self._readers[key]:
                self._drawn.pop(key, None)


def draw(runner: str, key: Hashable, path: list[str]) -> Any:
    """The data set called `key`, in a Ray worker that imports from `path` too."""
    add_path(path)
    sets = data_sets(runner)
    if sets is None:
        raise LookupError(f"runner {runner} has no data sets")
    return sets.draw(key)


def add_path(path: list[str]) -> None:
    """Let this process import what the sweep's own can, where the places are there."""
    sys.path += [place for place in path if place not in sys.path]
