"""`show_progress`: a sweep's progress on a terminal, or a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lotterykit.experiments.forecast import say_seconds
from lotterykit.experiments.sweep import Progress

QUIET_SECONDS = 20.0  # between two lines where there is no terminal


@contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """A `progress` callable for `Sweep.run`: a bar with the remaining time if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[cells]} cells, {task.fields[left]} left"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("sweep", total=1.0, cells="0", left="?")
        yield lambda p: bar.update(
            task, completed=p.share, cells=f"{p.finished}/{p.total}", left=_remaining(p)
        )


class _Lines:
    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            left = _remaining(progress)
            print(
                f"{progress.finished}/{progress.total} cells, about {left} left", file=sys.stderr, flush=True
            )


def _remaining(progress: Progress) -> str:
    return "?" if progress.remaining is None else say_seconds(progress.remaining)
