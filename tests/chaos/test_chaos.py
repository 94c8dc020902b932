"""The reduced form of `make chaos`, and that it sees what it looks for."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import chaos
import pytest
from sweeping import sweep_of
from sweeps import Trial

from lotterykit.experiments.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture
def run(tmp_path, capsys):
    """A run with a seed of its own, which must find nothing wrong."""
    seed = random.randrange(2**31)
    run = chaos.Chaos(tmp_path / "chaos", seed)
    run.folder.mkdir()
    yield run
    wrong = {what: run.tally[what] for what in chaos.WRONG if run.tally[what]}
    assert not wrong, f"seed {seed}: {wrong}\n{capsys.readouterr().out}"


def test_sweeps_that_are_killed(run):
    chaos.kill_at_points(run, 6)
    run.sweeps("random kills", "quick", 3, lambda trial: trial.random_kill(run.rng, 0.6))
    run.sweeps(
        "kills within writes", "quick", 2, lambda trial: trial.kill_within_a_write(chaos.write_size(run.rng))
    )
    assert run.tally["kills at points"] == 6
    assert run.tally["random kills"] >= 3
    assert run.tally["kills within writes"] == 2


def test_sweeps_that_cannot_write_or_are_replaced(run):
    chaos.fail(run, 1)
    chaos.wake_zombies(run, 2)
    assert (run.tally["disks full"], run.tally["I/O errors"], run.tally["zombies"]) == (1, 1, 2)


def test_a_search_that_is_killed(run):
    run.searches("modules", 1)
    assert run.tally["kills of searches"] == 1
    assert run.tally["searches"] >= 1


@pytest.fixture
def trial(tmp_path):
    """A trial whose store is done."""
    trial = Trial(tmp_path / "trial", "quick", {}, chaos.Counter())
    cells = sweep_of("quick").cells
    from fake_runner import row

    with Store(trial.store, write=True) as store:
        store.commit([row(cell) for cell in cells])
    trial.expected = trial.rows()
    trial.look({})
    return trial


def test_what_is_gone_is_lost(trial):
    with closing(sqlite3.connect(trial.store)) as db, db:
        db.execute("DELETE FROM cells WHERE rowid <= 2")
    trial.look({})
    assert trial.tally == {"lost": 2}


def test_what_is_damaged_is_broken_and_lost(trial):
    with closing(sqlite3.connect(trial.store)) as db, db:
        db.execute("UPDATE cells SET digest = '' WHERE rowid = 1")
    trial.look({})
    assert trial.tally == {"lost": 1, "broken": 1}


def test_other_numbers_are_differing_and_a_second_run_is_duplicated(trial):
    key = next(iter(trial.expected))
    trial.expected = {**trial.expected, key: {**trial.expected[key], "density": 0.7}}
    with closing(sqlite3.connect(trial.store)) as db, db:
        db.execute("DELETE FROM cells WHERE key = ?", (key,))
    trial.end()  # runs it again though it was done
    assert {what: trial.tally[what] for what in chaos.WRONG if trial.tally[what]} == {
        "duplicated": 1,
        "differing": 1,
    }
