"""`Crew`: spawned worker processes, the tasks they are given and the rows they hand back."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from pebble import ProcessExpired, ProcessPool

from lotterykit.errors import LotterykitError
from lotterykit.experiments.limits import over_memory, over_time, watch_memory
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import Report, Rows, Task, after, load_runner, wrong_rows

POLL_SECONDS = 0.2
START_SECONDS = 120  # until a worker that has not begun its task counts as lost
STARTS_LOST = 5  # workers lost in a row before they began, until the sweep is given up


class State(ctypes.Structure):
    """What a process tells its parent in shared memory: the finished share of its task (-1: not begun), its
    number, and the bytes held where that is why it ended itself."""

    _fields_ = (("share", ctypes.c_double), ("pid", ctypes.c_long), ("held", ctypes.c_longlong))


class Worker:
    """One pool of one process, so that whatever a dying process does to its pipe is its own affair."""

    def __init__(self, threads: int, limit: int) -> None:
        self._args = (threads, limit, list(sys.path))
        self.future: Future | None = None
        self.task: Task | None = None
        self.since = 0.0
        self.began: float | None = None
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.state: Any = context.RawValue(State, -1.0)  # its own: a killed process may still write to its
        args = (self.state, *self._args)
        self._pool = ProcessPool(1, context=context, initializer=_start_worker, initargs=args)

    def give(self, runner: str, task: Task) -> None:
        self.task, self.since, self.began = task, time.monotonic(), None
        self.state.share, self.state.held = -1.0, 0  # a process that ended itself between two tasks told too
        self.future = self._schedule(runner, task)

    def _schedule(self, runner: str, task: Task) -> Future:
        what = (runner, task.cells)
        try:
            return self._pool.schedule(_run_task, args=what)
        except RuntimeError:  # the process died between two tasks, within a message, and broke its pool
            self.renew()
            return self._pool.schedule(_run_task, args=what)

    def take(self) -> Task:
        task, self.future, self.task = self.task, None, None
        if task is None:
            raise LookupError("this worker has no task")
        return task

    def renew(self) -> None:
        """A fresh process; the old pool is closed beside, for a cut-off message may block its threads."""
        threading.Thread(target=self.close, args=(self._pool,), daemon=True).start()
        self._open()

    def close(self, pool: ProcessPool | None = None) -> None:
        pool = pool or self._pool
        pool.stop()
        pool.join()

    def exceeded(self) -> int:
        """Bytes that the process held when it ended itself for them; 0 where it did not."""
        return self.state.held

    def kill(self) -> None:
        """End the process at once: it owns nothing that a softer way would save."""
        self._pool.stop()
        for child in multiprocessing.active_children():
            if child.pid == self.state.pid:
                child.kill()


class Crew:
    """The parent's side: gives each worker one task at a time and takes back what comes."""

    def __init__(
        self,
        batches: Sequence[list[CellSpec]],
        runner: str,
        workers: int,
        threads: int,
        report: Report,
        resources: Resources,
    ) -> None:
        self.todo = deque(Task(list(cells)) for cells in batches)
        self.runner, self.report = runner, report
        self.timeout, self.memory = resources.timeout, int(resources.memory_per_worker or 0)
        self.workers = [Worker(threads, self.memory) for _ in range(workers)]
        self.lost = 0  # starts lost in a row

    def work(self) -> None:
        try:
            while self.todo or any(w.future for w in self.workers):
                for worker in self.workers:
                    if worker.future is None and self.todo:
                        worker.give(self.runner, self.todo.popleft())
                futures = [w.future for w in self.workers if w.future is not None]
                wait(futures, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for worker in self.workers:
                    self._collect(worker)
                running = [
                    (w.task.cells, max(0.0, w.state.share)) for w in self.workers if w.task is not None
                ]
                self.report.running(running)
        except BaseException:
            self._save()
            raise

    def _collect(self, worker: Worker) -> None:
        """Report what `worker` has finished; put back what must be tried again."""
        if worker.future is None or worker.task is None:
            return
        if not worker.future.done():
            self._check_clock(worker, worker.task)
            return
        future, task = worker.future, worker.task
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._restart(worker)
            return
        worker.take()
        if isinstance(error, ProcessExpired):
            held = worker.exceeded()
            error = over_memory(held, self.memory) if held else error
            worker.renew()
        self.lost = 0
        rows: Rows = [] if error is not None else future.result()
        error = error or wrong_rows(task.cells, rows)
        if error is None:
            self.report.rows(task.cells, rows)
        else:
            self.todo.extend(after(task, error, self.report))

    def _check_clock(self, worker: Worker, task: Task) -> None:
        """Restart a worker that does not begin; kill one that exceeds the time of its cells."""
        now = time.monotonic()
        if worker.state.share < 0:
            if now - worker.since > START_SECONDS:
                self._restart(worker)
            return
        if worker.began is None:
            worker.began = now
        seconds, cells = now - worker.began, len(task.cells)
        if self.timeout is not None and seconds > self.timeout * cells:
            worker.take()
            worker.kill()
            worker.renew()
            self.todo.extend(after(task, over_time(seconds, cells, self.timeout), self.report))

    def _restart(self, worker: Worker) -> None:
        """`worker` died before it began: not its cells' fault."""
        self.lost += 1
        if self.lost >= STARTS_LOST:
            raise LotterykitError("the workers die or hang before they begin; their messages stand above")
        self.todo.appendleft(worker.take())
        worker.renew()

    def _save(self) -> None:
        """What workers have handed over is paid for: report it before an exception goes on."""
        for worker in self.workers:
            if worker.future is not None and worker.future.done() and worker.future.exception() is None:
                task, rows = worker.task, worker.future.result()
                if task is not None and wrong_rows(task.cells, rows) is None:
                    self.report.rows(task.cells, rows)

    def dismiss(self) -> None:
        """Kill all workers at once and wait for their pools to close."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.close()


# -- in the worker

_state: Any = None
_threads = 1


def _start_worker(state: Any, threads: int, limit: int, path: list[str]) -> None:
    global _state, _threads
    _state, _threads = state, threads
    state.pid = os.getpid()
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if limit:
        watch_memory(limit, lambda held: setattr(state, "held", held), threading.Event())


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _run_task(runner: str, cells: list[CellSpec]) -> Rows:
    run = load_runner(runner)
    _state.share = 0.0  # the clock of a timeout starts once torch is loaded
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(_threads)

    def progress(share: float) -> None:
        _state.share = share

    return run(cells, progress=progress)
