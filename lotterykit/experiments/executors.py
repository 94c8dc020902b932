"""Executors: run batches of cells in isolated worker processes, on Ray, or in this process.

All are called as `run_local` is: with batches, the name of a runner, how many batches may run at once, a
`Report` that is told rows and failures, and `Resources` that were checked for that executor.

A worker that dies costs its own batch, whose cells are then tried one by one. Workers never write: they
hand rows to the parent. They are spawned, never forked (a fork after an OpenMP region hangs).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.experiments.cluster import connected, need_ray, slots
from lotterykit.experiments.crew import Crew
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import Report, Task, after, device_of, load_runner, wrong_rows

UNLIMITED = Resources()


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_in_worker() -> None:
    """Raises `ArgumentError` in a worker process: a script without its main guard runs there again."""
    # A spawned process knows its parent only after it has imported the script; multiprocessing's own check
    # for this asks the same attribute.
    starting = getattr(multiprocessing.current_process(), "_inheriting", False)
    if starting or multiprocessing.parent_process() is not None:
        raise ArgumentError(
            "a sweep was started while a worker process was importing your script: "
            "put the call under `if __name__ == '__main__':`"
        )


def need_main_file() -> None:
    """Raises `ArgumentError` where spawned workers could not import the main module again: a script that
    was piped into the interpreter names a file that is not there."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and path is not None and not os.path.exists(path):
        raise ArgumentError(
            f"worker processes import your script again, and {path} is no file: "
            'save the script, or run with executor="inline"'
        )


def run_inline(
    batches: Sequence[list[CellSpec]],
    *,
    runner: str,
    workers: int,
    report: Report,
    resources: Resources = UNLIMITED,
) -> None:
    """Run the batches one after another in this process: for tests and debuggers."""
    run = load_runner(runner)
    todo = deque(Task(list(cells)) for cells in batches)
    while todo:
        task = todo.popleft()
        done = _share_of(task, report)
        done(0.0)
        try:
            rows = run(task.cells, progress=done)
            problem: Exception | None = wrong_rows(task.cells, rows)
        except Exception as error:
            problem = error
        if problem is None:
            report.rows(task.cells, rows)
        else:
            todo.extend(after(task, problem, report))


def _share_of(task: Task, report: Report) -> Callable[[float], None]:
    return lambda share: report.running([(task.cells, share)])


def run_local(
    batches: Sequence[list[CellSpec]],
    *,
    runner: str,
    workers: int,
    report: Report,
    resources: Resources = UNLIMITED,
) -> None:
    """Run the batches, in their order, in `workers` spawned processes of cores // workers threads each.

    On any exception in this process, Ctrl-C included, what has arrived is reported and the workers are
    killed before it goes on. Raises `LotterykitError` where workers do not even start.
    """
    refuse_in_worker()
    need_main_file()
    load_runner(runner)
    workers = max(1, min(workers, len(batches)))
    with _thread_settings(max(1, cores() // workers)) as threads:
        crew = Crew(batches, runner, workers, threads, report, resources)
        try:
            crew.work()
        finally:
            crew.dismiss()


@contextmanager
def _thread_settings(threads: int) -> Iterator[int]:
    """The environment that spawned workers inherit: OpenMP reads it when torch is first imported there."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    wanted = {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield threads
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_ray(
    batches: Sequence[list[CellSpec]],
    *,
    runner: str,
    workers: int,
    report: Report,
    resources: Resources = UNLIMITED,
) -> None:
    """Run the batches, in their order, as Ray tasks, `workers` at once.

    On any exception in this process, Ctrl-C included, what has arrived is reported, the tasks are cancelled
    and a Ray that was started here is stopped before it goes on. Raises `LotterykitError` where Ray is
    missing, does not answer, or has no node fit for a batch.
    """
    resources = resources.checked("ray", device_of(runner))
    load_runner(runner)
    with connected(resources, workers):
        from lotterykit.experiments.ray_crew import RayCrew

        crew = RayCrew(batches, runner, workers, report, resources)
        try:
            crew.work()
        finally:
            crew.dismiss()


EXECUTORS: dict[str, Callable[..., None]] = {"local": run_local, "ray": run_ray, "inline": run_inline}


def find_executor(name: str) -> Callable[..., None]:
    """The executor called `name`. Raises `ArgumentError` for an unknown one, `LotterykitError` for one whose
    library is missing."""
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    if name == "ray":
        need_ray()
    return EXECUTORS[name]


def most_at_once(executor: str, resources: Resources) -> int:
    """Batches that run at once where nobody says how many: one a core of this machine; with Ray as many as
    the CPUs and GPUs of the cluster allow that is named or joined already, else those of this machine."""
    if executor != "ray":
        return cores()
    need_ray()
    import ray

    if resources.ray_address is not None or ray.is_initialized():
        with connected(resources, 1):
            return max(1, slots(resources))  # a cluster that is still growing has none
    by_cpu = cores() / (resources.cpus_per_task or 1)
    if not resources.gpus_per_task:
        return max(1, int(by_cpu))
    import torch

    return max(1, int(min(by_cpu, torch.cuda.device_count() / resources.gpus_per_task)))
