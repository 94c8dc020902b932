"""Trouble that a process meets with, at a point that its parent names: a kill, a stop, a write that fails.

A point is a line of a watched file that is about to run ("store.py:101") or an SQL statement that is about
to begin ("sql:COMMIT"), as Python's and SQLite's own trace functions tell them: the same on every machine.
Within a system call a write ends where the file reaches a size limit (RLIMIT_FSIZE): the kernel kills the
process with the write half done, or, where the signal is ignored, the call fails with an I/O error.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any


def say(word: str, what: object) -> None:
    """One line for the parent, whole even where several processes write."""
    os.write(1, f"{word} {what}\n".encode())


def watch(files: Collection[str], seen: Callable[[str], None]) -> None:
    """Call `seen` before every line of `files` that this thread runs."""
    names = {str(Path(file).resolve()): Path(file).name for file in files}

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            seen(f"{names[frame.f_code.co_filename]}:{frame.f_lineno}")
        return line

    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in names else None)


def statement(text: str) -> str:
    """The point of an SQL statement: its first words, without the values."""
    return "sql:" + " ".join(text.split()[:4])


class Point:
    """Sends this process `number` the `nth` time that it comes by `at`; counts the points it comes by."""

    def __init__(self, at: str | None, nth: int = 1, number: int = signal.SIGKILL) -> None:
        self.at, self.left, self.number = at, nth, number
        self.counts: dict[str, int] = {}

    def __call__(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        if name == self.at:
            self.left -= 1
            if self.left == 0:
                say("reached", name)
                os.kill(os.getpid(), self.number)


def limit_files(size: int, *, deadly: bool) -> None:
    """No file of this process grows beyond `size` bytes: a longer write ends there and kills, or fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def limit_pages(db: sqlite3.Connection, more: int) -> None:
    """The database is full after `more` pages."""
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + more}")
