"""`RayCrew`: batches as Ray tasks; and what such a task does, in its worker.

Rows reach the store through one writer: this process, which has the store's lock. A writing actor would have
to hold that lock itself, on the machine whose disk has the file (SQLite's WAL is shared memory): it could run
nowhere but here, and a finished batch would take one hop more. Tasks return rows; nothing else writes. The
actor `Board`, which writes nothing, carries what tasks tell of themselves while they run.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.experiments.cluster import slots
from lotterykit.experiments.limits import over_memory, over_time, watch_memory
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.shelf import Shelf, add_path
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import Report, Rows, Task, after, load_runner, wrong_rows

POLL_SECONDS = 0.2
TELL_SECONDS = 1.0  # between two words of a task whose share does not change
NODE_LOSSES = 3  # nodes that a task may lose until its cells are blamed for it
NODE_SECONDS = 600  # without any node that could run a batch, until the sweep is given up
# None of these is the cells' fault.
LOST = (LocalRayletDiedError, NodeDiedError, ObjectLostError, TaskCancelledError, TaskUnschedulableError)
log = logging.getLogger(__name__)


class Board:
    """What running tasks tell: ticket -> (finished share, bytes held where that is why the worker ends)."""

    def __init__(self) -> None:
        self._news: dict[int, tuple[float, int]] = {}

    def tell(self, ticket: int, share: float, held: int) -> None:
        _, before = self._news.get(ticket, (0.0, 0))
        self._news[ticket] = (share, max(held, before))

    def news(self) -> dict[int, tuple[float, int]]:
        """What was told since the last call."""
        news, self._news = self._news, {}
        return news


@dataclass
class Run:
    """A task that Ray was given, and what is known of it; `began` by this process's clock."""

    task: Task
    ticket: int
    began: float | None = None
    share: float = 0.0
    held: int = 0


class RayCrew:
    """The driver's side: as many batches at once as there are workers, the next as soon as one is done."""

    def __init__(
        self,
        batches: Sequence[list[CellSpec]],
        runner: str,
        workers: int,
        report: Report,
        resources: Resources,
    ) -> None:
        self.todo = deque(Task(list(cells)) for cells in batches)
        self.runner, self.workers, self.report, self.resources = runner, workers, report, resources
        self.running: dict[Any, Run] = {}
        self.tickets = itertools.count()
        # Ray's own retries would not tell a lost node from a bad cell.
        options: dict[str, Any] = {"num_cpus": resources.cpus_per_task, "num_gpus": resources.gpus_per_task}
        self.start = ray.remote(max_retries=0, **options)(run_task)
        self.shelf = Shelf(batches, runner, options)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        boards: Any = ray.remote(num_cpus=0, max_restarts=-1)(Board)
        self.board = boards.options(scheduling_strategy=here).remote()
        self.asked = self.board.news.remote()
        self.last_node = time.monotonic()

    def work(self) -> None:
        try:
            self._first_look()
            while self.todo or self.running:
                while self.todo and len(self.running) < self.workers:
                    self._submit(self.todo.popleft())
                ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
                self._listen()
                for ref in self._ready():
                    self._collect(ref)
                self._check_clocks()
                self._check_nodes()
                self.report.running([(run.task.cells, run.share) for run in self.running.values()])
        except BaseException:
            self._save()
            raise

    def _submit(self, task: Task) -> None:
        run = Run(task, next(self.tickets))
        data, limits = self.shelf.take(task), (self._threads(), int(self.resources.memory_per_worker or 0))
        words = (self.board, run.ticket, *limits, list(sys.path), list(data))
        self.running[self.start.remote(self.runner, task.cells, *words, *data.values())] = run

    def _threads(self) -> int:
        return max(1, int(self.resources.cpus_per_task or 1))

    def _ready(self) -> list[Any]:
        refs = list(self.running)
        return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []

    def _listen(self, seconds: float = 0.0) -> None:
        """Take in what the board has, if it answers within `seconds`; it may be starting again."""
        ready, _ = ray.wait([self.asked], timeout=seconds)
        if not ready:
            return
        news: dict[int, tuple[float, int]] = {}
        with suppress(RayError):
            news = ray.get(self.asked)
        self.asked = self.board.news.remote()
        for run in self.running.values():
            if run.ticket in news:
                run.began = run.began or time.monotonic()
                run.share, held = news[run.ticket]
                run.held = max(run.held, held)

    def _collect(self, ref: Any) -> None:
        """Report what a finished task returned; put back what must be tried again."""
        task = self.running[ref].task
        rows: Rows = []
        error: BaseException | None = None
        try:
            rows = ray.get(ref)
            error = wrong_rows(task.cells, rows)
        except RayError as raised:
            error = self._cause(ref, raised)
        self.running.pop(ref)
        if error is None:
            self.shelf.leave(task)
            self.report.rows(task.cells, rows)
        elif isinstance(error, LOST) and task.losses < NODE_LOSSES:
            self.todo.appendleft(replace(task, losses=task.losses + 1))
        else:
            self._failed(task, error)

    def _failed(self, task: Task, error: BaseException) -> None:
        self.shelf.leave(task)
        self.todo.extend(after(task, error, self.report))

    def _cause(self, ref: Any, error: BaseException) -> BaseException:
        """What ended a task, told in few words."""
        run = self.running[ref]
        if isinstance(error, RayTaskError):
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, Exception) else error
        if isinstance(error, WorkerCrashedError) and self.resources.memory_per_worker is not None:
            for _ in range(2):  # the question on its way may have been answered before the worker told
                self._listen(5.0)
            if run.held:
                return over_memory(run.held, int(self.resources.memory_per_worker))
        if isinstance(error, WorkerCrashedError):
            return LotterykitError("the worker died")
        if isinstance(error, OutOfMemoryError):
            return LotterykitError("out of memory: Ray killed the worker, its node had too little left")
        if isinstance(error, LOST) and run.task.losses >= NODE_LOSSES:
            return LotterykitError(f"lost with its node {NODE_LOSSES + 1} times")
        return error

    def _check_clocks(self) -> None:
        """Kill the tasks that exceed the time of their cells."""
        timeout, now = self.resources.timeout, time.monotonic()
        if timeout is None:
            return
        for ref, run in list(self.running.items()):
            seconds, cells = now - (run.began or now), len(run.task.cells)
            if seconds > timeout * cells:
                self.running.pop(ref)
                ray.cancel(ref, force=True)
                self._failed(run.task, over_time(seconds, cells, timeout))

    def _first_look(self) -> None:
        if slots(self.resources):
            return
        missing = self._missing()
        if self.resources.ray_address is None:
            raise ArgumentError(missing)
        log.warning("%s; waiting %d s for one", missing, NODE_SECONDS)

    def _check_nodes(self) -> None:
        """Raises `LotterykitError` once no node has been fit to run a batch for `NODE_SECONDS`."""
        now = time.monotonic()
        if any(run.began for run in self.running.values()) or slots(self.resources):
            self.last_node = now
        elif now - self.last_node > NODE_SECONDS:
            raise LotterykitError(self._missing())

    def _missing(self) -> str:
        cpus, gpus = self.resources.cpus_per_task, self.resources.gpus_per_task
        there = {k: ray.cluster_resources().get(k, 0.0) for k in ("CPU", "GPU")}
        return (
            f"no node of the Ray cluster has the {cpus:g} CPUs and {gpus:g} GPUs that a batch takes: "
            f"all together have {there['CPU']:g} and {there['GPU']:g}"
        )

    def _save(self) -> None:
        """What tasks have returned is paid for: report it before an exception goes on, which a Ray that
        has failed must not hide."""
        ready: list[Any] = []
        with suppress(RayError):
            ready = self._ready()
        for ref in ready:
            task = self.running[ref].task
            with suppress(RayError):
                rows = ray.get(ref)
                if wrong_rows(task.cells, rows) is None:
                    self.report.rows(task.cells, rows)

    def dismiss(self) -> None:
        """Cancel all tasks at once."""
        with suppress(RayError):
            for ref in self.running:
                ray.cancel(ref, force=True)
            ray.kill(self.board)


def run_task(
    runner: str,
    cells: list[CellSpec],
    board: Any,
    ticket: int,
    threads: int,
    limit: int,
    path: list[str],
    keys: list[Hashable],
    *data: Any,
) -> Rows:
    """The rows of a batch, in a Ray worker; `data` are the sets called `keys`."""
    add_path(path)
    run = load_runner(runner)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    share, done = [0.0], threading.Event()

    def tell(held: int) -> None:
        ray.get(board.tell.remote(ticket, share[0], held), timeout=5)

    board.tell.remote(ticket, 0.0, 0)
    threading.Thread(target=_tell, args=(board, ticket, share, done), daemon=True).start()
    if limit:
        watch_memory(limit, tell, done)
    given = {"data": dict(zip(keys, data, strict=True))} if keys else {}
    try:
        return run(cells, progress=lambda value: share.__setitem__(0, value), **given)
    finally:
        done.set()


def _tell(board: Any, ticket: int, share: list[float], done: threading.Event) -> None:
    told, when = 0.0, time.monotonic()
    while not done.wait(POLL_SECONDS):
        if share[0] != told or time.monotonic() - when > TELL_SECONDS:
            told, when = share[0], time.monotonic()
            board.tell.remote(ticket, told, 0)
