"""`execute`: a sweep on a terminal, from its forecast over its progress to what became of it."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lotterykit.experiments.executors import find_executor
from lotterykit.experiments.forecast import say_seconds
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store, check_writable
from lotterykit.experiments.sweep import Progress, Sweep
from lotterykit.experiments.tasks import device_of

SHOWN_FAILURES = 3
MEASURING_SECONDS = 2.0  # of the forecast, until it says that it is at work
QUIET_SECONDS = 20.0  # between two lines where there is no terminal


def execute(
    whole: Sweep,
    store: Path,
    workers: int | None,
    executor: str,
    again: str | None = None,
    resources: Resources | None = None,
) -> int:
    """Forecast, run, say what happened; the exit status. `again` is the command that goes on."""
    device, resources = device_of(whole.runner), resources or Resources()
    again = again or resume_command(store, device, executor, resources)
    find_executor(executor)
    resources.checked(executor, device)
    check_writable(store)
    measuring = threading.Timer(
        MEASURING_SECONDS, print, ["measuring a few steps ..."], {"file": sys.stderr, "flush": True}
    )
    measuring.start()
    try:
        expected = whole.forecast(workers=workers, store=store, executor=executor, **asdict(resources))
    finally:
        measuring.cancel()
    done = len(whole.cells) - expected.cells
    if done:
        print(f"{done} of {len(whole.cells)} cells are done already", flush=True)
    if expected.cells:
        print(f"forecast for {expected}", flush=True)
    lost = 0

    def note(progress: Progress) -> None:
        nonlocal lost
        lost = progress.running
        show(progress)

    try:
        with show_progress() as show:
            result = whole.run(executor, workers, store, progress=note, **asdict(resources))
    except KeyboardInterrupt:
        under_way = f", {lost} cell{'s' * (lost > 1)} under way lost" if lost else ""
        print(f"stopped{under_way}; go on with: {again}", file=sys.stderr)
        return 130
    for failed in result.failed[:SHOWN_FAILURES]:
        print(
            f"failed: {failed.cell.key()[:12]} after {failed.attempts} tries: {failed.error}", file=sys.stderr
        )
    if result.failed:
        status = f"lotterykit sweep status {shlex.quote(str(store))}"
        print(f"{len(result.failed)} cells failed: {status}; try again with: {again}", file=sys.stderr)
    took = say_seconds(result.seconds)
    print(f"{result.ran} cells run in {took}, {result.reused} reused: {store}", flush=True)
    return 1 if result.failed else 0


def resume_command(
    store: Path, device: str = "cpu", executor: str = "local", resources: Resources | None = None
) -> str:
    """What goes on with the sweeps of `store`."""
    words = ["lotterykit", "sweep", "resume", str(store)]
    words += [] if executor == "local" else ["--executor", executor]
    words += [] if device == "cpu" else ["--device", device]
    return shlex.join([*words, *(resources or Resources()).flags()])


def tell_damaged(store: Store, cells: list[CellSpec] | None = None, again: str | None = None) -> None:
    """Say on stderr how many rows of `store` are left out because they are damaged."""
    say_damaged(store.damaged(cells), store.path, again)


def say_damaged(count: int, store: Path, again: str | None = None) -> None:
    """Say on stderr that so many rows of `store` are left out, and what mends them; nothing for 0."""
    if count:
        what = f"{count} damaged row{'s' * (count > 1)} left out"
        print(f"{what}: {again or resume_command(store)}", file=sys.stderr)


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
