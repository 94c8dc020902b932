"""`Crew`: spawned worker processes, the tasks they are given and the rows they hand back."""

from __future__ import annotations

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
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import Report, Rows, Task, after, load_runner, wrong_rows

POLL_SECONDS = 0.2
START_SECONDS = 120  # until a worker that has not begun its task counts as lost
STARTS_LOST = 5  # workers lost in a row before they began, until the sweep is given up


class Worker:
    """One pool of one process, so that whatever a dying process does to its pipe is its own affair."""

    def __init__(self, index: int, shares: Any, pids: Any, threads: int) -> None:
        self._args = (shares, pids, index, threads, list(sys.path))
        self._pids, self._index = pids, index
        self.future: Future | None = None
        self.task: Task | None = None
        self.since = 0.0
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(1, context=context, initializer=_start_worker, initargs=self._args)

    def give(self, runner: str, task: Task) -> None:
        self.task, self.since = task, time.monotonic()
        self.future = self._schedule(runner, task)

    def _schedule(self, runner: str, task: Task) -> Future:
        what = (runner, task.cells, task.slot)
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

    def kill(self) -> None:
        """End the process at once: it owns nothing that a softer way would save."""
        self._pool.stop()
        for child in multiprocessing.active_children():
            if child.pid == self._pids[self._index]:
                child.kill()


class Crew:
    """The parent's side: gives each worker one task at a time and takes back what comes."""

    def __init__(
        self, batches: Sequence[list[CellSpec]], runner: str, workers: int, threads: int, report: Report
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.todo = deque(Task(list(cells), slot) for slot, cells in enumerate(batches))
        self.runner, self.report = runner, report
        self.shares = context.RawArray("d", max(1, len(batches)))  # finished share of a batch; -1: not begun
        pids = context.RawArray("l", workers)
        self.workers = [Worker(index, self.shares, pids, threads) for index in range(workers)]
        self.lost = 0  # starts lost in a row

    def work(self) -> None:
        try:
            while self.todo or any(w.future for w in self.workers):
                for worker in self.workers:
                    if worker.future is None and self.todo:
                        task = self.todo.popleft()
                        self.shares[task.slot] = -1.0
                        worker.give(self.runner, task)
                running = [w.future for w in self.workers if w.future is not None]
                wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for worker in self.workers:
                    self._collect(worker)
                tasks = [w.task for w in self.workers if w.task is not None]
                self.report.running([(t.cells, max(0.0, self.shares[t.slot])) for t in tasks])
        except BaseException:
            self._save()
            raise

    def _collect(self, worker: Worker) -> None:
        """Report what `worker` has finished; put back what must be tried again."""
        if worker.future is None or worker.task is None:
            return
        if not worker.future.done():
            late = time.monotonic() - worker.since > START_SECONDS
            if late and self.shares[worker.task.slot] < 0:
                self._restart(worker)
            return
        future, task = worker.future, worker.task
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._restart(worker)
            return
        worker.take()
        if isinstance(error, ProcessExpired):
            worker.renew()
        self.lost = 0
        rows: Rows = [] if error is not None else future.result()
        error = error or wrong_rows(task.cells, rows)
        if error is None:
            self.report.rows(task.cells, rows)
        else:
            self.todo.extend(after(task, error, self.report))

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

_shares: Any = None
_threads = 1


def _start_worker(shares: Any, pids: Any, index: int, threads: int, path: list[str]) -> None:
    global _shares, _threads
    _shares, _threads = shares, threads
    pids[index] = os.getpid()
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _run_task(runner: str, cells: list[CellSpec], slot: int) -> Rows:
    _shares[slot] = 0.0
    run = load_runner(runner)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(_threads)

    def progress(share: float) -> None:
        _shares[slot] = share

    return run(cells, progress=progress)
