"""The store's file: its tables and versions, how it is made, recognised and opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lotterykit.errors import StoreError, brief

APPLICATION_ID = 0x4C4F5454  # "LOTT"
SCHEMA_VERSION = 1
DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # SQLite quotes names of a damaged file as they are
MAX_ROW_BYTES = 1 << 28  # far beyond any row of ours; a damaged length allocates no more
TABLES = {
    "cells": (
        "key TEXT PRIMARY KEY, spec TEXT NOT NULL, result TEXT NOT NULL, digest TEXT NOT NULL, "
        "written_at TEXT NOT NULL"
    ),
    "plan": "key TEXT PRIMARY KEY, spec TEXT NOT NULL, added_at TEXT NOT NULL",
    "failures": "key TEXT PRIMARY KEY, error TEXT NOT NULL, attempts INTEGER NOT NULL, at TEXT NOT NULL",
    "meta": "name TEXT PRIMARY KEY, value INTEGER NOT NULL",
}


def check_path(path: Path, write: bool) -> bool:
    """Whether the store exists. Raises `StoreError` where it cannot be read, or written if `write`."""
    if "\0" in str(path):
        raise StoreError(f"{str(path)!r}: not a path")
    try:
        if path.is_dir():
            raise StoreError(f"{path}: is a directory, not a store")
        if not path.exists():
            if path.is_symlink():
                raise StoreError(f"{path}: a link to {os.readlink(path)}, which does not exist")
            if not write:
                raise StoreError(f"{path}: no such store")
            if not path.parent.is_dir():
                raise StoreError(f"{path}: the directory {path.parent} does not exist")
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise StoreError(f"{path}: the directory {path.parent} is not writable")
            return False
        if not path.is_file():
            raise StoreError(f"{path}: not a regular file")
        if not os.access(path, os.R_OK) or (write and not os.access(path, os.W_OK)):
            raise StoreError(f"{path}: no permission to {'write' if write else 'read'}")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return True


def check_ours(path: Path) -> None:
    """Raises `StoreError` for a file that is no store of ours or from a newer version, without touching it.

    Opened as immutable: SQLite then writes nothing beside it either, whatever its mode.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if application == APPLICATION_ID and version > SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: written by a newer lotterykit (schema {version}, known here: {SCHEMA_VERSION})"
                )
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            computed = _computed(db) if application == APPLICATION_ID else None
    except DAMAGE as error:
        raise StoreError(f"{path}: not a lotterykit store, or corrupt: {brief(error)}") from None
    if application != APPLICATION_ID:
        raise StoreError(f"{path}: not a lotterykit store (application id {application})")
    if version < 1 or not tables >= TABLES.keys():
        lacking = ", ".join(sorted(TABLES.keys() - tables)) or "a schema version"
        raise StoreError(f"{path}: not a lotterykit store, or corrupt: it lacks {lacking}")
    if computed is not None:
        raise StoreError(f"{path}: not a lotterykit store: it holds {computed}, which could run anything")


def _computed(db: sqlite3.Connection) -> str | None:
    """What in the file is SQL to be run, not data: a view, a trigger, a virtual table, a generated column."""
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind in ("view", "trigger"):
            return f"the {kind} {brief(name)}"
        if str(sql).upper().startswith("CREATE VIRTUAL"):
            return f"the virtual table {brief(name)}"
    for table in TABLES:
        if any(column[6] for column in db.execute(f"PRAGMA table_xinfo({table})")):
            return f"a generated column in {table}"
    return None


def create(path: Path) -> None:
    """A new empty store, complete or not there: built under another name, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with clear(path):
            draft.unlink(missing_ok=True)
            with closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("BEGIN IMMEDIATE")
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for table, columns in TABLES.items():
                    db.execute(f"CREATE TABLE {table} ({columns})")
                db.execute("INSERT INTO meta VALUES ('writer', 0)")
                db.execute("COMMIT")
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """The opened store. Reading prefers a connection that could write: closing it clears away the log."""
    if write or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        modes = ["mode=rw"]
    elif path.with_name(path.name + "-wal").exists():
        modes = ["mode=ro"]
    else:  # nobody can be writing into a read-only folder, so no log is needed
        modes = ["mode=ro", "mode=ro&immutable=1"]
    while True:
        db: sqlite3.Connection | None = None
        uri = f"{path.absolute().as_uri()}?{modes.pop(0)}"
        try:
            with clear(path):
                db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
                db.execute("PRAGMA trusted_schema = OFF")
                db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
                db.execute("PRAGMA journal_mode = WAL" if write else "PRAGMA query_only = ON")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("SELECT count(*) FROM meta").fetchone()
            return db
        except StoreError:
            if db is not None:
                db.close()
            if not modes:
                raise


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """SQLite's and the file system's errors as one line that names the store."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        what = {"database is locked": "another process is writing to it"}.get(str(error), brief(error))
        raise StoreError(f"{path}: {what}") from None
