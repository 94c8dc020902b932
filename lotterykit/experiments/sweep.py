"""`Sweep`: a grid of cells, run in batches, each cell once, its row in one store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.calibrate import calibrator
from lotterykit.experiments.executors import (
    cores,
    find_executor,
    most_at_once,
    need_main_file,
    refuse_in_worker,
)
from lotterykit.experiments.forecast import Forecast, check_memory, forecast, work
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.schema import check_path
from lotterykit.experiments.spec import BATCH, CellSpec, group
from lotterykit.experiments.store import Store
from lotterykit.experiments.tasks import Failed, Rows, check_device, device_of, runner_on

log = logging.getLogger(__name__)

RUNNER = "lotterykit.experiments.plant_and_seek:run_batch"
REPORT_SECONDS = 0.2  # between two calls of `progress`
BATCH_SECONDS = 30.0  # of a batch on one core, by the guess of `work`: what a kill may cost


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands: cells `finished` (failed ones too) of `total`; `share` in [0, 1] is weighed by
    cost and counts running batches; `remaining` in seconds, None while unknown; `running`: cells under
    way, which a kill would lose."""

    finished: int
    total: int
    failed: int
    share: float
    elapsed: float
    remaining: float | None
    running: int = 0


@dataclass(frozen=True)
class SweepResult:
    """What a run did: `ran` cells computed now, `reused` found done, `repaired` ones whose stored row was
    damaged (with the damage), `failed` ones. `rows` reads the result rows of all cells from the store."""

    cells: list[CellSpec]
    store: Path
    ran: int
    reused: int
    repaired: dict[CellSpec, str]
    failed: list[Failed]
    seconds: float

    @property
    def rows(self) -> Rows:
        with Store(self.store) as store:
            return list(store.rows(self.cells))


class Sweep:
    """All cells of a grid. `spec` holds the fields they share, `grid` lists for those that vary.

    `seeds` is a count or a list; every seed and setting also gets its ground-truth row unless `oracle` is
    false. `runner` names the function that computes a batch, `device` where networks train ("cpu", "cuda",
    "cuda:1"); all else is computed on the CPU. Raises `ArgumentError`.

    >>> len(Sweep({"task": "relu"}, {"method": ["snip", "random"], "density": [0.1, "truth"]}, seeds=2).cells)
    10
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | CellSpec | None = None,
        grid: Mapping[str, Any] | None = None,
        seeds: int | list[int] | None = None,
        *,
        oracle: bool = True,
        runner: str = RUNNER,
        device: str = "cpu",
    ) -> None:
        fields = spec.model_dump(exclude_unset=True) if isinstance(spec, CellSpec) else dict(spec or {})
        self.cells = Grid(spec=fields, grid=dict(grid or {}), seeds=seeds, oracle=oracle).cells()
        self.runner = runner_on(runner, device)

    @classmethod
    def of(cls, cells: Iterable[CellSpec], *, runner: str = RUNNER, device: str = "cpu") -> Sweep:
        """A sweep over exactly `cells`, each once."""
        sweep = cls.__new__(cls)
        sweep.cells, sweep.runner = list(dict.fromkeys(cells)), runner_on(runner, device)
        return sweep

    def forecast(
        self,
        *,
        workers: int | None = None,
        store: str | Path | None = None,
        executor: str = "local",
        **resources: Any,
    ) -> Forecast:
        """Time, memory and disk of what is still to run (everything, without a `store`): measures a few
        steps of each shape on this machine; time is None where that fails. Raises `ArgumentError` and
        `StoreError` as `run` would."""
        workers, allowed = self._allowed(executor, workers, resources)
        batches = self._affordable(workers, store, allowed)
        calibrate = calibrator(self.runner, max(1, cores() // workers))
        return forecast(batches, workers=workers, calibrate=calibrate)

    def _allowed(
        self, executor: str, workers: int | None, resources: dict[str, Any]
    ) -> tuple[int, Resources]:
        """How many batches run at once, with what. Raises `ArgumentError` where they cannot."""
        _check(self.cells, self.runner)
        allowed = Resources(**resources).checked(executor, device_of(self.runner))
        if allowed.ray_address is None:  # other machines may have what this one has not
            check_device(device_of(self.runner))
        return _workers(workers, executor, allowed), allowed

    def _affordable(self, workers: int, store: str | Path | None, allowed: Resources) -> list[list[CellSpec]]:
        """The batches still to run. Raises `ArgumentError` where they need more memory than there is."""
        todo = self.cells
        if store is not None and check_path(Path(store), write=True):
            with Store(store) as opened:
                good, _ = opened.done(self.cells)
            todo = [cell for cell in self.cells if cell not in good]
        batches = _batches(todo, workers)
        if allowed.ray_address is None:
            check_memory(batches, workers)
        return batches

    def run(
        self,
        executor: str = "local",
        workers: int | None = None,
        store: str | Path = "runs.sqlite",
        resume: bool = True,
        progress: Callable[[Progress], None] | None = None,
        **resources: Any,
    ) -> SweepResult:
        """Run every cell that has no good row in `store`, and keep each row as soon as its batch is done.

        `workers`, the batches that run at once, default to one a core (of the cluster, with Ray);
        `resources` are the fields of `Resources`, as `timeout=60`. With `resume=False` a store that exists is
        refused. Cells that fail are listed in the result and in the store, and tried again next time. On
        Ctrl-C the finished batches are in the store when `KeyboardInterrupt` goes on. Raises `ArgumentError`
        and `StoreError` before anything runs, `LotterykitError` where workers or Ray do not start.
        """
        refuse_in_worker()
        start = find_executor(executor)
        if executor == "local":
            need_main_file()
        workers, allowed = self._allowed(executor, workers, resources)
        if not resume and Path(store).exists():
            raise StoreError(f"{store}: exists already; resume it or name another")
        self._affordable(workers, store, allowed)
        began = time.monotonic()
        with Store(store, write=True) as opened:
            opened.plan(self.cells)
            good, bad = opened.done(self.cells)
            todo = [cell for cell in self.cells if cell not in good]
            log.info("%s: %d of %d cells are to be run", store, len(todo), len(self.cells))
            for cell, fault in bad.items():
                log.warning("cell %s is run again, its row was damaged: %s", cell.key()[:12], fault)
            recorder = Recorder(opened, self.cells, todo, progress)
            try:
                if todo:
                    batches = _batches(todo, workers)
                    start(batches, runner=self.runner, workers=workers, report=recorder, resources=allowed)
            finally:
                recorder.tell(force=True)
        seconds = time.monotonic() - began
        return SweepResult(self.cells, Path(store), recorder.ran, len(good), bad, recorder.failures, seconds)


@dataclass
class Recorder:
    """Writes what executors report and tells `progress`."""

    store: Store
    cells: list[CellSpec]
    todo: list[CellSpec]
    progress: Callable[[Progress], None] | None
    ran: int = 0
    failures: list[Failed] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _told: float = 0.0
    _done: float = 0.0
    _running: float = 0.0
    _under_way: int = 0

    def __post_init__(self) -> None:
        self._total = sum(map(work, self.todo))

    def rows(self, cells: list[CellSpec], rows: Rows) -> None:
        self.store.commit(rows)
        self.ran += len(cells)
        self._done += sum(map(work, cells))
        self._running = max(0.0, self._running - sum(map(work, cells)))
        self._under_way = max(0, self._under_way - len(cells))
        self.tell(force=True)

    def failed(self, failure: Failed) -> None:
        key, tries = failure.cell.key()[:12], failure.attempts
        log.error("cell %s failed after %d tries: %s", key, tries, failure.error)
        self.store.fail(failure.cell, failure.error, tries)
        self.failures.append(failure)
        self._done += work(failure.cell)
        self._under_way = max(0, self._under_way - 1)
        self.tell(force=True)

    def running(self, shares: list[tuple[list[CellSpec], float]]) -> None:
        self._running = sum(share * sum(map(work, cells)) for cells, share in shares)
        self._under_way = sum(len(cells) for cells, _ in shares)
        self.tell()

    def tell(self, force: bool = False) -> None:
        now = time.monotonic()
        if self.progress is None or (not force and now - self._told < REPORT_SECONDS):
            return
        self._told = now
        finished = len(self.cells) - len(self.todo) + self.ran + len(self.failures)
        elapsed, done = now - self.began, min(self._done + self._running, self._total)
        if finished == len(self.cells):
            done = self._total  # which the sum may miss by a rounding
        remaining = elapsed * (self._total - done) / done if done else None if self.todo else 0.0
        share = done / self._total if self._total else 1.0
        self.progress(
            Progress(
                finished, len(self.cells), len(self.failures), share, elapsed, remaining, self._under_way
            )
        )


def _batches(cells: list[CellSpec], workers: int) -> list[list[CellSpec]]:
    """Batches, the dearest first; small enough that no worker is left without one and that rows reach the
    store every `BATCH_SECONDS` or so. Rows do not depend on them."""
    size = max(1, min(BATCH, -(-len(cells) // workers)))
    batches = group(cells, size, most=lambda cell: int(BATCH_SECONDS / work(cell)))
    return sorted(batches, key=lambda batch: -sum(map(work, batch)))


def _workers(workers: int | None, executor: str, resources: Resources) -> int:
    if workers is None:
        return most_at_once(executor, resources)
    if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 1024:
        raise ArgumentError(f"workers must be an int from 1 to 1024, got {workers!r}")
    return workers


def _check(cells: list[CellSpec], runner: str) -> None:
    """Raises `ArgumentError` for cells that could only fail: a target wider than its mother."""
    if not cells:
        raise ArgumentError("the sweep has no cell")
    if runner.partition("@")[0] != RUNNER:
        return
    from lotterykit.planting.targets import TARGETS

    for task, depth, width in dict.fromkeys((cell.task, cell.depth, cell.width) for cell in cells):
        widest = max(TARGETS[task](depth).widths[1:-1])
        if widest > width:
            raise ArgumentError(
                f"the {task} target of depth {depth} is {widest} wide, its mother only {width}"
            )
