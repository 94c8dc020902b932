"""Tests of `lotterykit.experiments.schema`: stores of older versions are migrated, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fake_runner import row

from lotterykit import __version__
from lotterykit.errors import StoreError
from lotterykit.experiments import schema
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from lotterykit.experiments.store import Store

CELLS = Grid(spec={"task": "circle", "method": "snip", "density": [0.1, 0.5]}, seeds=3).cells()
HERE = Path(__file__).parent

# The first schema, written out here as the first release wrote it.
FIRST = """
PRAGMA application_id = 0x4C4F5454;
PRAGMA user_version = 1;
CREATE TABLE cells (key TEXT PRIMARY KEY, spec TEXT NOT NULL, result TEXT NOT NULL, digest TEXT NOT NULL,
                    written_at TEXT NOT NULL);
CREATE TABLE plan (key TEXT PRIMARY KEY, spec TEXT NOT NULL, added_at TEXT NOT NULL);
CREATE TABLE failures (key TEXT PRIMARY KEY, error TEXT NOT NULL, attempts INTEGER NOT NULL,
                       at TEXT NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO meta VALUES ('writer', 5);
"""


@pytest.fixture
def path(tmp_path):
    """A store of schema 1, all `CELLS` but the last done, that one failed."""
    path = tmp_path / "runs.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST)
        for cell in CELLS:
            spec = json.dumps(cell.model_dump(mode="json"), sort_keys=True)
            db.execute("INSERT INTO plan VALUES (?, ?, ?)", (cell.key(), spec, "2025-01-01"))
            if cell != CELLS[-1]:
                content = (cell.key(), spec, json.dumps(row(cell)))
                digest = hashlib.sha256("\0".join(content).encode()).hexdigest()
                db.execute("INSERT INTO cells VALUES (?, ?, ?, ?, ?)", (*content, digest, "2025-01-01"))
        db.execute("INSERT INTO failures VALUES (?, 'why', 3, '2025-01-01')", (CELLS[-1].key(),))
    return path


def dump(path):
    """Everything in the file, by table."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in tables}
        return found, db.execute("PRAGMA user_version").fetchone()[0]


def layout(path):
    with closing(sqlite3.connect(path)) as db:
        return sorted(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def test_an_older_store_is_migrated_when_it_is_written(path, tmp_path):
    before, _ = dump(path)
    with Store(path, write=True) as store:
        assert store.done(CELLS) == (set(CELLS[:-1]), {})
        assert store.planned() == CELLS
        assert store.failures() == {CELLS[-1].key(): ("why", 3)}
        assert store.check() == []
        store.commit([row(CELLS[-1])])
    after, version = dump(path)
    assert version == SCHEMA_VERSION
    assert [(number, by) for number, by, _ in after["versions"]] == [(2, __version__)]
    assert [r for r in after["cells"] if r[0] != CELLS[-1].key()] == before["cells"]
    assert after["meta"] == [("writer", 6)]
    Store(tmp_path / "new", write=True).close()
    with closing(sqlite3.connect(tmp_path / "new")) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    squeezed = [
        [(*names, " ".join((sql or "").split())) for *names, sql in layout(p)]
        for p in (path, tmp_path / "new")
    ]
    assert squeezed[0] == squeezed[1]


def test_an_older_store_is_read_as_it_is(path):
    before = dump(path)
    with Store(path) as store:
        assert len(list(store.rows())) == len(CELLS) - 1
    assert dump(path) == before


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (("CREATE TABLE more (x)", "INSERT INTO nowhere VALUES (1)"), "nowhere"),
        (("CREATE TABLE more (x)", "DELETE FROM cells WHERE rowid = 1"), "would change its rows"),
        (("UPDATE plan SET spec = '{}'",), "would change its rows"),
    ],
)
def test_a_migration_that_fails_leaves_the_store_as_it_was(path, monkeypatch, steps, says):
    monkeypatch.setitem(MIGRATIONS, 3, steps)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    before = dump(path)
    with pytest.raises(StoreError, match=says) as caught:
        Store(path, write=True)
    assert str(path) in str(caught.value)
    assert dump(path) == before
    with Store(path) as store:
        assert len(list(store.rows())) == len(CELLS) - 1


def test_steps_of_several_versions_are_taken_in_order(path, monkeypatch):
    monkeypatch.setitem(MIGRATIONS, 3, ("CREATE TABLE more (x)",))
    monkeypatch.setitem(MIGRATIONS, 4, ("ALTER TABLE more ADD COLUMN y", "INSERT INTO more VALUES (1, 2)"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 4)
    Store(path, write=True).close()
    found, version = dump(path)
    assert version == 4
    assert found["more"] == [(1, 2)]
    assert [number for number, *_ in found["versions"]] == [2, 3, 4]
    monkeypatch.undo()
    for write in (False, True):
        with pytest.raises(StoreError, match=f"schema 4, known here: {SCHEMA_VERSION}"):
            Store(path, write=write)


KILLED = """
import os, signal, sys
from lotterykit.experiments import schema, store

def seen(statement):
    seen.left -= 1
    if seen.left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

seen.left = int(sys.argv[2])
connect = store.connect

def traced(path, write):
    db = connect(path, write)
    db.set_trace_callback(seen)
    return db

store.connect = traced
store.Store(sys.argv[1], write=True).close()
"""


def test_a_kill_at_any_statement_of_a_migration_leaves_one_version_or_the_other(path):
    (before, _), codes = dump(path), []
    while not codes or codes[-1] != 0:
        found, version = dump(path)
        assert {name: found[name] for name in ("cells", "plan", "failures")} == {
            name: before[name] for name in ("cells", "plan", "failures")
        }
        assert ("versions" in found) == (version == 2)
        command = [sys.executable, "-c", KILLED, str(path), str(2 * len(codes))]
        codes.append(subprocess.run(command, check=False).returncode)
    assert set(codes) == {0, -signal.SIGKILL}
    assert len(codes) > 4
    assert dump(path)[1] == SCHEMA_VERSION
    assert sorted(os.listdir(path.parent)) == [path.name]


def test_a_newer_schema_in_the_log_is_seen(path):
    """A newer lotterykit was killed after it migrated: its version stands in the log alone."""
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        f"db.execute('PRAGMA user_version = {SCHEMA_VERSION + 1}'); db.commit(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    for write in (False, True):
        with pytest.raises(StoreError, match="newer lotterykit"):
            Store(path, write=write)
