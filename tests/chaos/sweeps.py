"""`Trial`: one store from nothing to its last cell, through trouble; what it lost, ran twice or got wrong."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from child import Child
from sweeping import REFUSED

from lotterykit.experiments.store import Store

ENDS = {0, REFUSED, -signal.SIGKILL, -signal.SIGXFSZ}


class Trial:
    """A store under `folder` and the tally of what happens to it."""

    def __init__(self, folder: Path, kind: str, expected: dict[str, dict], tally: Counter[str]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.kind, self.expected, self.tally = folder, kind, expected, tally
        self.store = folder / "runs.sqlite"
        self.kept: set[str] = set()  # keys that a sweep said are in the store, or that were seen there
        self.rounds = 0

    def start(self, **trouble: Any) -> Child:
        """A sweep that goes on with the store and meets with `trouble`."""
        self.rounds += 1
        order = {"store": str(self.store), "kind": self.kind, **trouble}
        return Child("sweeping.py", order, self.folder / f"stderr.{self.rounds}")

    def finish(self, child: Child) -> int:
        """The end of `child`, and a look at what it left."""
        code, alone = child.end()
        if code not in ENDS:
            self._wrong("broken", f"exit status {code}: {child.order}\n{child.complaint()}")
        if not alone:
            self._wrong("orphans", f"workers outlived their sweep: {child.order}")
        again = 0
        done = set(self.kept)
        for word, what in child.said:
            key = what.split()[0]
            if word == "kept":
                done.add(key)
            again += word == "begin" and key in done
        if again:
            self._wrong("duplicated", f"{again} cells were run though they were done: {child.order}", again)
        self.kept = done
        if self.rounds % 2:  # else the next sweep is the first to open what this one left
            self.look(child.order)
        return code

    def look(self, order: dict[str, Any]) -> None:
        """Every row that was kept is there, once and whole, by reading alone."""
        if not self.store.exists():
            found: list[str] = []
        else:
            with Store(self.store) as store:
                if faults := store.check():
                    self._wrong("broken", f"{faults[0]}: {order}", len(faults))
                found = [row["key"] for row in store.rows()]
        twice = len(found) - len(set(found))
        if twice:
            self._wrong("duplicated", f"{twice} rows are there twice: {order}", twice)
        if gone := self.kept - set(found):
            self._wrong("lost", f"{len(gone)} rows are gone: {order}", len(gone))
        self.kept |= set(found)

    def end(self) -> None:
        """A sweep without trouble to the last cell, and the comparison with one that never met with any."""
        if (code := self.finish(self.start())) != 0:
            self._wrong("broken", f"the last sweep ended with status {code}")
        rows = self.rows()
        self.tally["cells"] += len(self.expected)
        missing = self.expected.keys() - rows.keys()
        if missing:
            self._wrong("lost", f"{len(missing)} cells have no row in the end", len(missing))
        other = [key for key in self.expected.keys() & rows.keys() if rows[key] != self.expected[key]]
        if other or rows.keys() - self.expected.keys():
            self._wrong("differing", f"{len(other)} rows are others than undisturbed", len(other) or 1)

    def rows(self) -> dict[str, dict]:
        """The rows of the store by key, without what differs between runs of a cell: how long it took."""
        with Store(self.store) as store:
            return {row["key"]: {**row, "times": None} for row in store.rows()}

    def _wrong(self, what: str, why: str, count: int = 1) -> None:
        self.tally[what] += count
        print(f"{what}: {self.folder}: {why}", flush=True)

    # -- trouble

    def random_kill(self, rng: random.Random, seconds: float) -> int:
        """kill -9 of the sweep, of it and its workers, or of some workers first; returns how many kills."""
        child, kills = self.start(), 0
        if child.wait_for("begin"):
            target = rng.choice(("sweep", "group", "workers"))
            for _ in range(rng.randint(1, 2) if target == "workers" else 0):
                time.sleep(rng.uniform(0, seconds / 2))
                kills += child.process.poll() is None and child.kill_worker(rng.randrange(100))
            time.sleep(rng.uniform(0, seconds))
            if child.process.poll() is None:
                child.kill(group=target == "group")
        return kills + (self.finish(child) == -signal.SIGKILL)

    def kill_at(self, point: str, nth: int) -> int:
        """kill -9 at a point; 0 where the sweep did not come by."""
        return int(self.finish(self.start(at=point, nth=nth)) == -signal.SIGKILL)

    def kill_within_a_write(self, size: int) -> int:
        """The kernel kills the sweep within the write that would grow a file beyond `size` bytes."""
        return int(self.finish(self.start(bytes=size, deadly=True)) == -signal.SIGXFSZ)

    def fail(self, **trouble: int | bool) -> int:
        """A full disk or an I/O error ends the sweep, in one line; 0 where it fitted in."""
        child = self.start(**trouble)
        code = self.finish(child)
        reasons = child.all("refused")
        if code == REFUSED and (len(reasons) != 1 or str(self.store) not in reasons[0]):
            self._wrong("broken", f"not one line that names the store: {reasons}")
        return int(code == REFUSED)

    def zombie(self, point: str, nth: int) -> int:
        """A sweep is stopped at a point and its lock file cleared away; another takes over and is killed on
        its way; the first one wakes up and must write no row: late. 0 where it did not come by the point."""
        known = set(self.kept)
        old = self.start(at=point, nth=nth, number=int(signal.SIGSTOP))
        if not old.wait_for("reached"):
            self.finish(old)
            return 0
        second = self.start()
        if self.finish(second) != REFUSED or second.all("begin"):
            self._wrong("broken", f"a store that a stopped sweep holds was written: {old.order}")
        lock = self.store.with_name(self.store.name + ".lock")
        lock.unlink(missing_ok=True)
        heir = self.start()
        took_over = heir.wait_for("begin")  # not where the first one stopped within a transaction
        if took_over:
            heir.kill(group=True)
        self.finish(heir)
        before, others = self._dump(), self.kept
        self.kept = known  # what others did since is no duplicate of what the first one had begun
        os.kill(old.process.pid, signal.SIGCONT)
        self.finish(old)
        self.kept |= others
        if took_over:
            self.tally["replaced"] += 1
            if (after := self._dump()) != before:
                self._wrong("late", f"{len(set(after) ^ set(before))} rows of a sweep that was replaced")
        self.look(old.order)
        return 1

    def _dump(self) -> list[tuple]:
        if not self.store.exists():
            return []
        with closing(sqlite3.connect(f"{self.store.absolute().as_uri()}?mode=ro", uri=True)) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return [(name, *row) for name in tables for row in db.execute(f"SELECT * FROM {name}")]
