"""Tests of `lotterykit.experiments.executors`, `crew` and `tasks`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_runner import row
from notes import Notes
from pebble.pool.base_pool import PoolStatus

from lotterykit.errors import ArgumentError, LotterykitError
from lotterykit.experiments.crew import Crew
from lotterykit.experiments.executors import UNLIMITED, cores, find_executor
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.limits import resident_bytes
from lotterykit.experiments.resources import Resources
from lotterykit.experiments.spec import group
from lotterykit.experiments.sweep import Sweep

CELLS = Grid(spec={"task": "circle", "method": "snip", "density": 0.1}, seeds=8, oracle=False).cells()
HERE = Path(__file__).parent


def run(executor, runner, *, workers=2, size=4, **resources):
    notes = Notes()
    name = f"fake_runner:{runner}"
    allowed = Resources(**resources).checked(executor, "cpu")
    find_executor(executor)(group(CELLS, size), runner=name, workers=workers, report=notes, resources=allowed)
    return notes


@pytest.fixture(autouse=True)
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERYKIT_TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_every_cell_is_reported_once(executor, monkeypatch):
    monkeypatch.setattr("lotterykit.experiments.crew.POLL_SECONDS", 0.01)  # several looks at each batch
    notes = run(executor, "slow")
    assert sorted(cell.seed for cell, _ in notes.found) == list(range(8))
    assert all({**found, "times": 0} == {**row(cell), "times": 0} for cell, found in notes.found)
    assert notes.given_up == []
    assert max(notes.shares) > 0


def test_a_dead_worker_costs_its_batch_whose_cells_are_tried_alone():
    notes = run("local", "crash_on_seed_3")
    assert sorted(cell.seed for cell, _ in notes.found) == [0, 1, 2, 4, 5, 6, 7]
    (failure,) = notes.given_up
    assert (failure.cell.seed, failure.attempts) == (3, 3)
    assert failure.error == "the worker died (SIGKILL)"


def test_a_worker_that_dies_once_costs_nothing():
    notes = run("local", "crash_once", workers=1)
    assert sorted(cell.seed for cell, _ in notes.found) == list(range(8))
    assert notes.given_up == []


def test_a_pool_that_breaks_between_two_tasks_is_renewed():
    class Broken(Notes):
        def rows(self, cells, rows):
            super().rows(cells, rows)
            crew.workers[0]._pool._context.status = PoolStatus.ERROR  # as pebble does

    notes = Broken()
    crew = Crew(group(CELLS, 4), "fake_runner:good", 1, 1, notes, UNLIMITED)
    try:
        crew.work()
    finally:
        crew.dismiss()
    assert sorted(cell.seed for cell, _ in notes.found) == list(range(8))
    assert notes.given_up == []


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_an_exception_costs_its_cell_alone(executor):
    notes = run(executor, "raise_on_seed_3")
    assert len(notes.found) == 7
    (failure,) = notes.given_up
    assert failure.error == "RuntimeError: seed 3 is bad"


def test_a_cell_that_hangs_is_killed_after_its_time():
    notes = run("local", "hang_on_seed_3", timeout=0.5)
    assert sorted(cell.seed for cell, _ in notes.found) == [0, 1, 2, 4, 5, 6, 7]
    (failure,) = notes.given_up
    assert (failure.cell.seed, failure.attempts) == (3, 3)
    assert failure.error.startswith("out of time: killed after 0.")
    assert failure.error.endswith("timeout is 0.5 s")


def test_a_batch_has_the_time_of_all_its_cells():
    notes = run("local", "slow", workers=1, size=8, timeout=0.1)  # .03 s a cell: .24 s the batch
    assert len(notes.found) == 8
    assert notes.given_up == []


SLOW_TO_LOAD = """
import os, time
import fake_runner
crashed = os.path.exists(os.environ["LOTTERYKIT_TEST_LOG"])
if crashed:
    time.sleep(2)

def run(cells, *, progress=None):
    return (fake_runner.crash_once if len(cells) == 2 else fake_runner.good)(cells)
"""


def test_a_worker_that_still_loads_has_its_time_whatever_its_batch_mates_do(tmp_path, monkeypatch, caplog):
    """The cells of a lost batch are tried in a fresh process, which loads, and in one that has loaded."""
    (tmp_path / "slow_to_load.py").write_text(SLOW_TO_LOAD)
    monkeypatch.syspath_prepend(tmp_path)
    notes, resources = Notes(), Resources(timeout=1.0)
    batches = [CELLS[:2], *([cell] for cell in CELLS[2:4])]
    find_executor("local")(batches, runner="slow_to_load:run", workers=2, report=notes, resources=resources)
    assert sorted(cell.seed for cell, _ in notes.found) == [0, 1, 2, 3]
    assert "the worker died" in caplog.text
    assert "out of time" not in caplog.text


def test_a_worker_that_holds_too_much_memory_is_killed_alone():
    notes = run("local", "greedy_on_seed_3", memory_per_worker="500MB")
    assert sorted(cell.seed for cell, _ in notes.found) == [0, 1, 2, 4, 5, 6, 7]
    (failure,) = notes.given_up
    assert (failure.cell.seed, failure.attempts) == (3, 3)
    assert re.fullmatch(r"out of memory: the worker held \d+ MB, memory_per_worker is 500 MB", failure.error)


def test_memory_held_between_two_tasks_is_not_blamed_for_the_next_crash(caplog):
    class Greedy(Notes):
        def rows(self, cells, rows):
            super().rows(cells, rows)
            crew.workers[0].state.held = 10**9  # as a process does that ends itself for it

    notes = Greedy()
    crew = Crew([CELLS[2:3], CELLS[3:4]], "fake_runner:crash_on_seed_3", 1, 1, notes, UNLIMITED)
    try:
        crew.work()
    finally:
        crew.dismiss()
    assert [failure.cell.seed for failure in notes.given_up] == [3]
    assert "the worker died (SIGKILL)" in caplog.text
    assert "out of memory" not in caplog.text


def test_resident_bytes_grow_with_what_is_held():
    before = resident_bytes()
    held = b"x" * (200 << 20)
    assert resident_bytes() - before > 0.9 * len(held)


@pytest.mark.parametrize(
    ("resources", "executor", "says"),
    [
        ({"timeout": 0}, "local", "timeout must be a number of seconds above 0, got 0"),
        ({"timeout": float("nan")}, "local", "timeout must be"),
        ({"timeout": float("inf")}, "local", "timeout must be"),
        ({"timeout": "3"}, "local", "timeout must be"),
        ({"timeout": True}, "local", "timeout must be"),
        ({"timeout": 3}, "inline", "timeout needs executor 'local' or 'ray', got 'inline'"),
        ({"memory_per_worker": "1GB"}, "inline", "memory_per_worker needs executor"),
        ({"memory_per_worker": 100}, "local", "at least 346030080 bytes"),
        ({"memory_per_worker": "4 gigs"}, "local", "text like 4GB or 500MB, got '4 gigs'"),
        ({"memory_per_worker": True}, "local", "memory_per_worker must be"),
        ({"memory_per_worker": -(10**12)}, "local", "memory_per_worker must be"),
        ({"gpus_per_task": 1}, "local", "gpus_per_task needs executor 'ray', got 'local'"),
        ({"ray_address": "auto"}, "inline", "ray_address needs executor 'ray'"),
        ({"ray_address": "ray://head:10001"}, "ray", "on a node of the cluster"),
        ({"ray_address": ""}, "ray", "host:port or 'auto'"),
        ({"cpus_per_task": 0}, "ray", "cpus_per_task must be a number of CPUs above 0"),
        ({"gpus_per_task": 1}, "ray", "gpus_per_task must be 0 with device cpu, got 1"),
    ],
)
def test_bad_resources_are_refused(resources, executor, says):
    with pytest.raises(ArgumentError, match=re.escape(says)):
        Resources(**resources).checked(executor, "cpu")


@pytest.mark.parametrize(("gpus", "device"), [(1.5, "cuda"), (-1, "cuda"), (0, "cuda"), (None, "cuda:1")])
def test_bad_gpus_are_refused(gpus, device):
    with pytest.raises(ArgumentError, match=r"gpus_per_task|Ray chooses the GPU"):
        Resources(gpus_per_task=gpus).checked("ray", device)


def test_resources_of_ray_have_defaults():
    assert Resources().checked("ray", "cpu") == Resources(cpus_per_task=1.0, gpus_per_task=0.0)
    assert Resources().checked("ray", "cuda") == Resources(cpus_per_task=1.0, gpus_per_task=1.0)
    assert Resources(gpus_per_task=0.25).checked("ray", "cuda").gpus_per_task == 0.25
    assert Resources(timeout=3, gpus_per_task=0.5).flags() == ["--timeout", "3", "--gpus-per-task", "0.5"]


@pytest.mark.parametrize(
    ("runner", "says"),
    [("short", "no good rows"), ("not_json", "no good rows"), ("other_key", "no good rows")],
)
def test_wrong_rows_are_failures(runner, says):
    notes = run("inline", runner)
    assert notes.found == []
    assert len(notes.given_up) == 8
    assert all(says in failure.error for failure in notes.given_up)


def test_a_bad_argument_is_not_tried_again_and_again():
    assert {failure.attempts for failure in run("inline", "bad_argument").given_up} == {2}


def test_workers_get_their_share_of_the_cores():
    before = os.environ.get("OMP_NUM_THREADS")
    notes = run("local", "threads")
    expected = {"OMP_NUM_THREADS": str(max(1, cores() // 2)), "OMP_WAIT_POLICY": "passive"}
    assert all(found["versions"] == expected for _, found in notes.found)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_unknown_executor_and_runner():
    with pytest.raises(ArgumentError, match="did you mean 'local'"):
        find_executor("locl")
    for name in ("fake_runner:none", "no_such_module:x", "fake_runner", ":"):
        with pytest.raises(ArgumentError, match="no runner"):
            find_executor("local")([CELLS], runner=name, workers=1, report=Notes())


def test_a_missing_ray_is_one_line_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    sweep = Sweep.of(CELLS, runner="fake_runner:good")
    for ask in (lambda: find_executor("ray"), lambda: sweep.run("ray", store=tmp_path / "s.sqlite")):
        with pytest.raises(LotterykitError, match=r"pip install 'lotterykit\[ray\]'") as error:
            ask()
        assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from lotterykit.experiments.sweep import Sweep
Sweep(dict(task="circle", method="snip", density=.1), seeds=4, runner="fake_runner:good").run(
    workers=1, store={store!r})
"""


@pytest.mark.parametrize(("executor", "fine"), [("local", False), ("inline", True)])
def test_a_piped_script_needs_the_inline_executor(tmp_path, executor, fine):
    script = SCRIPT.format(here=str(HERE), store=str(tmp_path / "s.sqlite"))
    script = script.replace("workers=1", f"executor={executor!r}")
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == fine, done.stderr
    assert (tmp_path / "s.sqlite").exists() == fine
    if not fine:
        assert done.stderr.count("Traceback") == 1
        assert 'save the script, or run with executor="inline"' in done.stderr


def test_a_script_without_main_guard_says_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), store=str(tmp_path / "s.sqlite")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr
    assert "workers die or hang before they begin" in done.stderr


def test_what_has_arrived_is_reported_when_the_parent_stops():
    class Stop(Notes):
        def rows(self, cells, rows):
            super().rows(cells, rows)
            raise KeyboardInterrupt

    notes, began = Stop(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        find_executor("local")(group(CELLS, 2), runner="fake_runner:slow", workers=2, report=notes)
    assert len(notes.found) >= 2
    assert time.monotonic() - began < 20


def test_workers_that_never_start_end_the_sweep(monkeypatch):
    monkeypatch.setattr("lotterykit.experiments.crew.POLL_SECONDS", 0.01)
    monkeypatch.setattr("lotterykit.experiments.crew.START_SECONDS", 0.0)
    with pytest.raises(LotterykitError, match="before they begin"):
        run("local", "endless")
