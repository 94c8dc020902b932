"""`sweep status`: counts, speed and the live table, while a process of its own fills the store."""

from __future__ import annotations

import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import fake_runner
import pytest

from lotterykit.cli import invoke
from lotterykit.errors import ArgumentError
from lotterykit.experiments.lock import writer_of
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store
from lotterykit.experiments.watch import Watch

# plans 8 cells, then commits one at each line it reads; the one of seed 3 fails
WRITER = """
import sys, fake_runner
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store
cells = [CellSpec(task="circle", method=m, density=.1, seed=s) for m in ("snip", "random") for s in range(4)]
with Store(sys.argv[1], write=True) as store:
    store.plan(cells)
    print("planned", flush=True)
    for cell in cells:
        sys.stdin.readline()
        if cell.seed == 3 and "fail" in sys.argv:
            store.fail(cell, "RuntimeError: bad", 2)
        else:
            store.commit([fake_runner.row(cell)])
        print("wrote", flush=True)
    sys.stdin.readline()
"""
HERE = str(Path(__file__).parent)


class _Writer:
    """A process that fills a store, a cell at a time."""

    def __init__(self, path, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_env(),
        )  # fmt: skip
        assert self.process.stdout.readline() == "planned\n"

    def write(self, cells=1):
        for _ in range(cells):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "wrote\n"

    def end(self):
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0


def _env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def writer(tmp_path):
    """Starts a writer of the store `tmp_path`/s.sqlite."""
    started = []

    def start(*words):
        started.append(_Writer(tmp_path / "s.sqlite", *words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_looks_follow_what_another_process_writes(tmp_path, writer):
    filling = writer("fail")
    with Store(tmp_path / "s.sqlite") as store:
        watch = Watch(store)
        first = watch.look()
        assert (first.done, first.failed, first.wanted, first.over) == (0, 0, 8, False)
        assert first.writer == filling.process.pid
        assert (first.rate, first.remaining) == (None, None)
        assert [(line.values, line.wanted) for line in first.lines] == [
            (("snip", 0.1), 4),
            (("random", 0.1), 4),
        ]
        filling.write(5)
        then = watch.look()
        assert [(line.done, line.failed, line.missing) for line in then.lines] == [(3, 1, 0), (1, 0, 3)]
        assert then.rate > 0
        assert then.remaining > 0
        filling.write(3)
        last = watch.look()
        assert (last.done, last.failed, last.remaining) == (6, 2, 0.0)
        assert not last.over  # who writes may try the failed ones again
        filling.end()
        gone = watch.look()
        assert gone.over
        assert (gone.writer, gone.rate, gone.remaining) == (None, None, None)
        assert {error for error, _ in gone.failures.values()} == {"RuntimeError: bad"}


def test_a_sweep_that_grows_and_a_damaged_row(tmp_path):
    path = tmp_path / "s.sqlite"
    cells = [CellSpec(task="relu", method="snip", density=0.1, seed=s) for s in range(3)]
    with Store(path, write=True) as store:
        store.plan(cells[:2])
        store.commit([fake_runner.row(cell) for cell in cells[:2]])
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE cells SET digest = '' WHERE key = ?", (cells[0].key(),))
        with Store(path) as reading:
            watch = Watch(reading, ["seed"])
            first = watch.look()
            assert (first.done, list(first.damaged)) == (1, [cells[0].key()])
            store.plan(cells)
            store.commit([fake_runner.row(cells[0]), fake_runner.row(cells[2])])
            then = watch.look()
            assert (then.done, then.wanted, then.damaged) == (3, 3, {})
            assert [line.values for line in then.lines] == [(0,), (1,), (2,)]


def test_time_left_is_the_missing_cells_cost_at_the_pace_of_the_last_rows(tmp_path, monkeypatch):
    """Four cells of 10 s were done in 20 s, so two at a time; four more take 20 s."""
    cells = [CellSpec(task="relu", method="snip", density=0.1, seed=s) for s in range(8)]
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.plan(cells)
        store.commit([{**fake_runner.row(cell), "times": {"total": 10.0}} for cell in cells[:4]])
        began = writer_of(store.path)[1]
        monkeypatch.setattr(time, "time", lambda: began + 20.0)
        now = Watch(store).look()
    assert now.rate == pytest.approx(4 / 20)
    assert now.remaining == pytest.approx(20.0)


def test_who_writes_is_known_without_touching_the_lock(tmp_path):
    path = tmp_path / "s.sqlite"
    assert writer_of(path) is None
    with Store(path, write=True):
        assert writer_of(path)[0] == os.getpid()
    assert writer_of(path) is None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for left in (f"{dead.pid} 0", "", "word", "0 0", "-1 0", str(os.getpid())):  # what a kill leaves behind
        (tmp_path / "s.sqlite.lock").write_text(left)
        assert writer_of(path) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no start of a process")
def test_a_process_with_the_number_of_a_killed_writer_is_not_that_writer(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path, write=True):
        pid, start = map(int, (tmp_path / "s.sqlite.lock").read_text().split())
    assert pid == os.getpid()
    (tmp_path / "s.sqlite.lock").write_text(f"{pid} {start - 1}")
    assert writer_of(path) is None


def test_a_lock_that_must_not_be_read_names_nobody(tmp_path, monkeypatch):
    def refuse(path, *words, **named):
        raise PermissionError(13, "Permission denied", str(path))

    with Store(tmp_path / "s.sqlite", write=True) as store:
        monkeypatch.setattr(Path, "read_text", refuse)
        assert writer_of(store.path) is None


def test_a_writer_of_another_user_is_there(tmp_path, monkeypatch):
    def refuse(pid, sign):
        raise PermissionError(1, "Operation not permitted")

    with Store(tmp_path / "s.sqlite", write=True) as store:
        monkeypatch.setattr(os, "kill", refuse)
        assert writer_of(store.path)[0] == os.getpid()


def test_an_unknown_setting_is_refused(tmp_path):
    with (
        Store(tmp_path / "s.sqlite", write=True) as store,
        pytest.raises(ArgumentError, match=r"'densty'.*density"),
    ):
        Watch(store, ["densty"])


def test_once_prints_a_table_by_the_settings_asked_for(tmp_path, writer, capsys):
    filling = writer("fail")
    filling.write(4)
    assert invoke(["sweep", "status", str(tmp_path / "s.sqlite"), "--by", "seed"]) == 0
    out = capsys.readouterr().out
    assert "3 of 8 cells done, 0 damaged, 1 failed" in out
    assert f"process {filling.process.pid} is at work" in out
    assert "go on with" not in out
    lines = [line.split() for line in out.splitlines() if line.split()[-3:-2] in (["1/2"], ["0/2"])]
    assert [(line[0], *line[-3:]) for line in lines] == [
        ("0", "1/2", "0", "1"), ("1", "1/2", "0", "1"), ("2", "1/2", "0", "1"), ("3", "0/2", "1", "1"),
    ]  # fmt: skip
    filling.write(4)
    filling.end()
    assert invoke(["sweep", "status", str(tmp_path / "s.sqlite")]) == 0
    assert "go on with: lotterykit sweep resume" in capsys.readouterr().out


def _follow(path, **pipes):
    words = ["-m", "lotterykit", "sweep", "status", path.name, "--follow"]  # a short name: no line is broken
    env = {**_env(), "TERM": "xterm", "COLUMNS": "150"}
    return subprocess.Popen([sys.executable, *words], env=env, cwd=path.parent, **pipes)


def _read_until(terminal, *patterns):
    """What is shown until all patterns have been: a screen may come in several reads."""
    seen = b""
    end = time.monotonic() + 60
    while not all(re.search(pattern, seen.decode(errors="ignore")) for pattern in patterns):
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 65536)


def test_live_on_a_terminal_until_all_is_done(tmp_path, writer):
    filling = writer()
    terminal, end = pty.openpty()
    following = _follow(tmp_path / "s.sqlite", stdout=end, stderr=end, stdin=end)
    os.close(end)
    _read_until(terminal, "0 of 8 cells done")
    filling.write(3)
    at_work = f"process {filling.process.pid} is at work"
    _read_until(terminal, "3 of 8 cells done", "snip", "3/4", at_work, "cells/")
    filling.write(5)
    _read_until(terminal, "8 of 8 cells done", "4/4")
    assert following.wait(30) == 0  # although the writer is still there
    os.close(terminal)


def test_lines_where_there_is_no_terminal_and_status_1_for_failures(tmp_path, writer):
    filling = writer("fail")
    following = _follow(tmp_path / "s.sqlite", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "0 of 8 cells done" in following.stdout.readline()
    filling.write(8)
    filling.end()
    out, err = following.communicate(timeout=60)
    assert (following.returncode, err) == (1, "")
    assert "\x1b" not in out
    assert out.splitlines()[0].endswith("6 of 8 cells done, 0 damaged, 2 failed")
    assert out.splitlines()[1].endswith("after 2 tries: RuntimeError: bad")


def test_ctrl_c_leaves_the_live_table(tmp_path, writer):
    writer()
    terminal, end = pty.openpty()
    following = _follow(tmp_path / "s.sqlite", stdout=end, stderr=subprocess.PIPE, stdin=end, text=True)
    os.close(end)
    _read_until(terminal, "0 of 8 cells done")
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (130, "lotterykit: stopped\n")
    assert "\x1b[?25h" in os.read(terminal, 65536).decode()  # the cursor is shown again
    os.close(terminal)
