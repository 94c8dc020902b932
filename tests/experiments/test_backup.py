"""Tests of `lotterykit.experiments.backup`."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from fake_runner import row

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.backup import backup
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.store import Store

CELLS = Grid(spec={"task": "circle", "method": "snip", "density": 0.1}, seeds=200, oracle=False).cells()
HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "runs.sqlite"
    with Store(path, write=True) as store:
        store.plan(CELLS)
        store.commit([row(cell) for cell in CELLS[:50]])
    return path


def test_a_backup_is_the_store(path, tmp_path):
    with Store(path) as store:
        assert backup(store, tmp_path / "copy") == []
        rows = list(store.rows())
    assert sorted(os.listdir(tmp_path)) == ["copy", path.name]
    with Store(tmp_path / "copy", write=True) as copy:  # and one that can be gone on with
        assert list(copy.rows()) == rows
        assert copy.planned() == CELLS
        assert copy.commit([row(CELLS[50])]) == 1


def test_a_backup_beside_a_running_writer_is_of_one_moment(path, tmp_path):
    begun, ended = threading.Event(), threading.Event()

    def write():
        with Store(path, write=True) as store:
            for at in range(50, 200, 3):  # three rows a transaction
                store.commit([row(cell) for cell in CELLS[at : at + 3]])
                begun.set()
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    counts = []
    with Store(path) as store:
        while not ended.is_set() or not counts:
            out = tmp_path / f"copy{len(counts)}"
            assert backup(store, out) == []
            with Store(out) as copy:
                counts.append(len(list(copy.rows())))
    writer.join()
    assert counts == sorted(counts)
    assert all((count - 50) % 3 == 0 for count in counts)


def test_a_backup_replaces_nothing(path, tmp_path):
    (tmp_path / "copy").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out in (tmp_path / "copy", tmp_path / "link", path):
        with Store(path) as store, pytest.raises(ArgumentError, match="exists already"):
            backup(store, out)
    assert (tmp_path / "copy").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["copy", "link", path.name]


def test_what_a_killed_backup_left_is_not_in_the_way(path, tmp_path):
    left = f".copy.{os.getpid()}.new"
    (tmp_path / left).write_text("another's")
    with Store(path) as store:
        assert backup(store, tmp_path / "copy") == []
    assert (tmp_path / left).read_text() == "another's"
    assert sorted(os.listdir(tmp_path)) == [left, "copy", path.name]


def test_what_cannot_be_written_is_one_line(path, tmp_path):
    with Store(path) as store, pytest.raises(StoreError, match="no/such/copy"):
        backup(store, tmp_path / "no/such/copy")
    assert os.listdir(tmp_path) == [path.name]


def test_damage_is_copied_and_told(path, tmp_path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE cells SET digest = 'x' WHERE key = ?", (CELLS[0].key(),))
    with Store(path) as store:
        (fault,) = backup(store, tmp_path / "copy")
    assert "digest" in fault
    with Store(tmp_path / "copy") as copy:
        assert (copy.damaged(), len(list(copy.rows()))) == (1, 49)


def test_a_copy_that_went_wrong_is_not_kept(path, tmp_path, monkeypatch):
    copied = Store.copy_into

    def spoil(store, db):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as bad:
            copied(store, bad)
            bad.execute("UPDATE cells SET result = '{}' WHERE rowid = 7")
            bad.backup(db)

    monkeypatch.setattr(Store, "copy_into", spoil)
    with Store(path) as store, pytest.raises(StoreError, match="the copy is damaged, and none is kept: row"):
        backup(store, tmp_path / "copy")
    assert os.listdir(tmp_path) == [path.name]


FULL = """
import resource, signal, sys
from pathlib import Path
from lotterykit.errors import StoreError
from lotterykit.experiments.backup import backup
from lotterykit.experiments.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store(sys.argv[1]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        backup(store, Path(sys.argv[2]))
    except StoreError as error:
        print(error)
"""


def test_a_full_disk_leaves_no_half_backup(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, tmp_path / "copy"], capture_output=True, text=True, check=True
    )
    assert "copy: disk I/O error" in done.stdout
    assert os.listdir(tmp_path) == [path.name]
