"""`WriterLock`: at most one process writes a store; freed by the operating system when its owner dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lotterykit.errors import StoreError


class WriterLock:
    """Holds `<store>.lock` until `release`. Raises `StoreError` where another process holds it.

    A file of its own: opening and closing the store itself would drop SQLite's POSIX locks. It lies beside
    the file that a link leads to: a store has one lock, by whatever name.
    """

    def __init__(self, store: Path) -> None:
        real = Path(os.path.realpath(store))
        self.path = real.with_name(real.name + ".lock")
        while True:
            try:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise StoreError(f"{store}: cannot be locked: {error.strerror}") from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                owner = (os.read(self._file, 20).decode(errors="replace").split() or ["?"])[0]
                os.close(self._file)
                raise StoreError(f"{store}: another process ({owner}) is writing to it") from None
            # The former owner may have removed the file between our open and our lock.
            if self._is_current():
                break
            os.close(self._file)
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()} {_start_of(os.getpid())}".encode())

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the lock file and free the lock."""
        if self._is_current():
            self.path.unlink(missing_ok=True)
        os.close(self._file)


def writer_of(store: Path) -> tuple[int, float] | None:
    """(process, when it began as a Unix time) of whoever writes `store`, None where nobody does.

    Asks the process, not the lock: to try the lock would keep a writer that is just starting out of it.
    """
    real = Path(os.path.realpath(store))
    path = real.with_name(real.name + ".lock")
    try:
        pid, start = map(int, path.read_text().split())
        began = path.stat().st_mtime
        there = pid > 0 and _is_there(pid, start)
    except (OSError, ValueError, OverflowError):
        return None
    return (pid, began) if there else None


def _is_there(pid: int, start: int) -> bool:
    """Whether the process that `_start_of` gave `start` runs. Raises `ProcessLookupError` where none has its
    number; that alone tells little: in containers each sweep may have the number of the one before."""
    with suppress(PermissionError):  # it is another user's, so it is there
        os.kill(pid, 0)
    return 0 in (start, now := _start_of(pid)) or start == now


def _start_of(pid: int) -> int:
    """When a process began, in clock ticks since the machine did; 0 where the system does not tell."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
        return int(told.rpartition(")")[2].split()[19])  # field 22; the name before may hold anything
    except (OSError, ValueError, IndexError):
        return 0
