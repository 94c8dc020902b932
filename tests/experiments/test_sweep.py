"""Tests of `lotterykit.experiments.sweep`: each cell once, whatever dies in between."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.forecast import work
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store
from lotterykit.experiments.sweep import BATCH_SECONDS, Sweep, _batches

SPEC = {"task": "circle", "method": "snip"}
GRID = {"density": [0.1, 0.5]}
HERE = Path(__file__).parent


def make(runner="good", seeds=4):
    return Sweep(SPEC, GRID, seeds, runner=f"fake_runner:{runner}")


def numbers(rows):
    """Rows without what may differ between two runs."""
    return [{**row, "times": None} for row in rows]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERYKIT_TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "runs.sqlite"


def test_a_finished_cell_is_never_run_again(store):
    first = make().run("inline", store=store)
    assert (first.ran, first.reused, first.failed) == (12, 0, [])
    again = make("bad_argument").run("inline", store=store)
    assert (again.ran, again.reused) == (0, 12)
    more = make(seeds=6).run("inline", store=store)
    assert (more.ran, more.reused) == (6, 12)
    assert len(more.rows) == 18
    assert numbers(first.rows) == numbers(again.rows)


def test_local_and_inline_give_the_same_rows(store):
    inline = make().run("inline", store=store).rows
    local = make().run("local", workers=2, store=store.with_name("b")).rows
    assert numbers(inline) == numbers(local)


def test_real_rows_do_not_depend_on_batches_or_workers(store):
    small = {"task": "circle", "samples": 200, "epochs": 1, "width": 40}
    grid = {"method": ["magnitude", "synflow"], "density": [0.1, "truth"], "gain": [0.0, 1.0]}
    sweep = Sweep(small, grid, 2)
    alone = sweep.run("inline", workers=len(sweep.cells), store=store).rows  # batches of one cell
    together = sweep.run("local", workers=1, store=store.with_name("b")).rows
    assert numbers(alone) == numbers(together)


def test_a_damaged_row_is_run_again_and_reported(store):
    before = make().run("inline", store=store).rows
    cell = make().cells[3]
    with closing(sqlite3.connect(store)) as db, db:
        db.execute("UPDATE cells SET result = replace(result, '0', '1') WHERE key = ?", (cell.key(),))
    result = make().run("inline", store=store)
    assert (result.ran, result.reused) == (1, 11)
    assert list(result.repaired) == [cell]
    assert numbers(result.rows) == numbers(before)


def test_failed_cells_are_listed_kept_and_tried_again(store):
    result = make("raise_on_seed_3").run("inline", store=store)
    assert {failed.cell.seed for failed in result.failed} == {3}
    assert (result.ran, len(result.failed), len(result.rows)) == (9, 3, 9)
    with Store(store) as opened:
        assert len(opened.failures()) == 3
    assert make().run("inline", store=store).ran == 3
    with Store(store) as opened:
        assert opened.failures() == {}


def test_resume_false_refuses_a_store_that_exists(store):
    make().run("inline", store=store, resume=False)
    with pytest.raises(StoreError, match="exists already"):
        make().run("inline", store=store, resume=False)


def test_progress_counts_up_to_the_end(store):
    told = []
    make("slow").run("local", workers=2, store=store, progress=told.append)
    assert [p.finished for p in told] == sorted(p.finished for p in told)
    assert told[-1].finished == told[-1].total == 12
    assert told[-1].share == 1
    assert told[-1].remaining == 0
    assert any(0 < p.share < 1 and p.remaining is not None for p in told)


def test_progress_tells_the_cells_under_way(store):
    told = []
    make("slow").run("local", workers=1, store=store, progress=told.append)
    assert told[-1].running == 0
    assert max(p.running for p in told) == 12
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        make("interrupted", seeds=5).run("inline", 1, store=store, progress=told.append)
    assert told[-1].running == 3


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 64),
        ({"pipeline": "multi-shot"}, 30),
        ({"width": 500}, 25),
        ({"width": 1000}, 7),
        ({"width": 3000}, 1),
        ({"rounds": 1000}, 10),
    ],
    ids=str,
)
def test_a_batch_is_no_more_than_a_kill_may_cost(fields, most):
    cells = Grid(spec={**SPEC, **fields, "density": 0.1}, seeds=100, oracle=False).cells()
    batches = _batches(cells, 2)
    assert max(map(len, batches)) <= most
    assert all(len(b) == 1 or sum(map(work, b)) <= BATCH_SECONDS for b in batches)
    assert len(batches[0]) > 1 or work(cells[0]) > BATCH_SECONDS / 2


def test_what_exceeds_memory_is_refused_before_a_store_is_made(store):
    sweep = Sweep({**SPEC, "width": 100_000}, {"density": [0.1]})
    for refused in (sweep.forecast, sweep.run):
        with pytest.raises(ArgumentError, match="of memory"):
            refused(store=store)
    assert not store.exists()


def test_a_cell_spec_is_a_spec(store):
    cell = CellSpec(**SPEC, density=0.1, gain=0.5)
    sweep = Sweep(cell, seeds=2, oracle=False)
    assert [(c.gain, c.seed) for c in sweep.cells] == [(0.5, 0), (0.5, 1)]
    assert Sweep.of([cell, cell]).cells == [cell]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"executor": "loca"}, "did you mean 'local'"),
        ({"workers": 0}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": 1.5}, "workers"),
    ],
)
def test_bad_arguments_make_no_store(store, arguments, says):
    with pytest.raises(ArgumentError, match=says):
        make().run(store=store, **arguments)
    assert not store.exists()


def test_a_target_wider_than_its_mother_is_refused_at_once(store):
    sweep = Sweep({**SPEC, "task": "helix", "width": 20}, {"density": [0.1]})
    with pytest.raises(ArgumentError, match="helix target of depth 5 is 30 wide, its mother only 20"):
        sweep.run(store=store)
    assert not store.exists()


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from lotterykit.experiments.sweep import Sweep
if __name__ == "__main__":
    print("begin", flush=True)
    Sweep({spec!r}, {grid!r}, {seeds}, runner="fake_runner:{runner}").run(workers=3, store={store!r})
    print("end", flush=True)
"""


def start(tmp_path, store, runner, seeds):
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(here=str(HERE), spec=SPEC, grid=GRID, seeds=seeds, runner=runner, store=str(store))
    )
    return subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, start_new_session=True)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def begun(log):
    """(worker's process id, key) of every cell that a runner has begun."""
    return [tuple(line.split()) for line in log.read_text().splitlines()]


def gone(pids):
    return wait_until(lambda: not any(alive(int(pid)) for pid in pids))


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_kill_9_loses_nothing_and_runs_nothing_twice(store, tmp_path):
    seeds, log, rng = 60, tmp_path / "log", random.Random()
    kills = 0
    while True:
        done = set()
        if store.exists():
            with Store(store) as opened:
                done = {row["key"] for row in opened.rows()}
                assert opened.check() == []
        log.write_text("")
        parent = start(tmp_path, store, "slow", seeds)
        if kills < 10:
            wait_until(log.read_text)
            time.sleep(rng.uniform(0, 0.5))
            parent.kill()
        code = parent.wait()
        assert not {key for _, key in begun(log)} & done
        assert gone({pid for pid, _ in begun(log)}), "workers outlived their parent"
        if code == 0:
            break
        kills += 1
    assert kills >= 3
    with Store(store) as opened:
        sweep = make(seeds=seeds)
        assert opened.done(sweep.cells) == (set(sweep.cells), {})
        rows = list(opened.rows(sweep.cells))
        assert len(list(opened.rows())) == len(rows) == len(sweep.cells)
        assert opened.check() == []
    undisturbed = sweep.run("inline", store=tmp_path / "other.sqlite")
    assert numbers(rows) == numbers(undisturbed.rows)


@needs_proc
def test_ctrl_c_keeps_what_is_done_and_kills_the_workers(store, tmp_path):
    parent = start(tmp_path, store, "endless", 4)
    log = tmp_path / "log"
    assert wait_until(lambda: log.exists() and log.read_text())
    began = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert parent.wait(timeout=20) != 0
    assert time.monotonic() - began < 10
    assert not alive(int(log.read_text()))
    assert make().run("inline", store=store).ran == 12
