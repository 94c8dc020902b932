"""`backup`: a copy of a store, safe beside a running sweep, that is there whole and checked or not at all."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.schema import clear, replace
from lotterykit.experiments.store import Store

BESIDE = ("", "-journal", "-wal", "-shm")


def backup(store: Store, out: Path) -> list[str]:
    """Copy `store` to the new file `out`; returns what is wrong with it there, a line each (`Store.check`).

    The copy is of one moment, whatever is committed meanwhile. What is damaged in the store is copied as it
    is. Raises `ArgumentError` where `out` exists, `StoreError` where it cannot be written, or where the copy
    has damage that the store has not.
    """
    if out.exists() or out.is_symlink():
        raise ArgumentError(f"{out}: exists already, and a backup replaces nothing; name another file")
    # What a killed process left must not be in the way: in containers the next one has its number.
    draft = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    try:
        with clear(out):
            draft.touch(exist_ok=False)
            # Nobody else knows the draft: no locks, which a network file system may not have.
            uri = f"{draft.absolute().as_uri()}?mode=rw&nolock=1"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
                copy.execute("PRAGMA synchronous = FULL")
                store.copy_into(copy)
        with Store(draft) as written:
            faults = written.check()
        known = store.check() if faults else []
        if new := [fault for fault in faults if fault not in known]:
            raise StoreError(f"{out}: the copy is damaged, and none is kept: {new[0]}")
        with clear(out):
            replace(draft, out)
    finally:
        for ending in BESIDE:
            if draft.parent.is_dir():
                draft.with_name(draft.name + ending).unlink(missing_ok=True)
    return faults
