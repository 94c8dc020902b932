"""The store's file: its tables and versions, how it is made, recognised, migrated and opened."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lotterykit import __version__
from lotterykit.errors import StoreError, brief
from lotterykit.experiments.network import network_file_system

APPLICATION_ID = 0x4C4F5454  # "LOTT"
HEADER_BYTES = 100  # of an SQLite file
DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # SQLite quotes names of a damaged file as they are
MAX_ROW_BYTES = 1 << 28  # far beyond any row of ours; a damaged length allocates no more
# The statements that lead to a schema version from the one before. A new store takes all of them, so that it
# cannot differ from one that was migrated; those of a released version never change.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE TABLE cells (key TEXT PRIMARY KEY, spec TEXT NOT NULL, result TEXT NOT NULL, "
        "digest TEXT NOT NULL, written_at TEXT NOT NULL)",
        "CREATE TABLE plan (key TEXT PRIMARY KEY, spec TEXT NOT NULL, added_at TEXT NOT NULL)",
        "CREATE TABLE failures (key TEXT PRIMARY KEY, error TEXT NOT NULL, attempts INTEGER NOT NULL, "
        "at TEXT NOT NULL)",
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        "INSERT INTO meta VALUES ('writer', 0)",
    ),
    2: (
        "CREATE TABLE versions (version INTEGER PRIMARY KEY, lotterykit TEXT NOT NULL, since TEXT NOT NULL)",
    ),
}
SCHEMA_VERSION = max(MIGRATIONS)


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
            _refuse_network(path, write)
            return False
        if not path.is_file():
            raise StoreError(f"{path}: not a regular file")
        if not os.access(path, os.R_OK) or (write and not os.access(path, os.W_OK)):
            raise StoreError(f"{path}: no permission to {'write' if write else 'read'}")
        _refuse_network(path, write)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return True


def _refuse_network(path: Path, write: bool) -> None:
    """Raises `StoreError` on a network file system, but for reading a store that nobody has open."""
    kind = network_file_system(path)
    if kind is None:
        return
    if write:
        raise StoreError(
            f"{path}: lies on a network file system ({kind}): the log of a store lives in memory that hosts "
            "do not share, and its locks may not hold there; put it on a local disk"
        )
    if _log(path).exists():
        raise StoreError(
            f"{path}: lies on a network file system ({kind}) and is open, or was not closed, elsewhere: read "
            "it on the host that writes it"
        )


def _log(path: Path) -> Path:
    """SQLite's write-ahead log: beside the file itself, not beside a link to it."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + "-wal")


def check_ours(path: Path) -> None:
    """Raises `StoreError` for a file that is no store of ours or from a newer version, without touching it.

    Opened as immutable: SQLite then writes nothing beside it either, whatever its mode. Where a log lies
    beside it the file alone may be half of a checkpoint, and only its header is looked at.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
            raise StoreError(f"{path}: not a lotterykit store, or corrupt: not an SQLite file")
        version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
        if application != APPLICATION_ID:
            raise StoreError(f"{path}: not a lotterykit store (application id {application})")
        _refuse_newer(path, version)
        if not _log(path).exists():
            uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(uri, uri=True)) as db:
                _check_tables(db, path)
    except (*DAMAGE, OSError) as error:
        raise StoreError(f"{path}: not a lotterykit store, or corrupt: {brief(error)}") from None


def _check_tables(db: sqlite3.Connection, path: Path) -> None:
    """Raises `StoreError` where the open store is of a newer schema, or lacks a table of its schema."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    _refuse_newer(path, version)
    tables = _tables(db)
    if version < 1 or not tables >= _tables_of(version):
        lacking = ", ".join(sorted(_tables_of(version) - tables)) or "a schema version"
        raise StoreError(f"{path}: not a lotterykit store, or corrupt: it lacks {lacking}")
    computed = _computed(db)
    if computed is not None:
        raise StoreError(f"{path}: not a lotterykit store: it holds {computed}, which could run anything")


def _computed(db: sqlite3.Connection) -> str | None:
    """What in the file is SQL to be run, not data: a view, a trigger, a virtual table, a generated column."""
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind in ("view", "trigger"):
            return f"the {kind} {brief(name)}"
        if str(sql).upper().startswith("CREATE VIRTUAL"):
            return f"the virtual table {brief(name)}"
    for table in sorted(_tables(db)):
        if any(hidden for (hidden,) in db.execute("SELECT hidden FROM pragma_table_xinfo(?)", (table,))):
            return f"a generated column in {brief(table)}"
    return None


def _refuse_newer(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: written by a newer lotterykit (schema {version}, known here: {SCHEMA_VERSION})"
        )


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@functools.cache
def _tables_of(version: int) -> set[str]:
    """The tables that a store of this schema version has."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        _step(db, 0, version)
        return _tables(db)


def create(path: Path) -> None:
    """A new empty store, complete or not there: built under another name, then renamed.

    For the holder of the writer's lock: drafts that killed ones left go.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with clear(path):
            # Not runs.csv's, which may be an export's that is being written.
            own = re.compile(rf"\.{re.escape(path.name)}\.\d+\.new(-journal|-wal|-shm)?")
            for left in path.parent.iterdir():
                if own.fullmatch(left.name):
                    left.unlink()
            with closing(sqlite3.connect(draft, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = FULL")
                with transaction(db):
                    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    _step(db, 0, SCHEMA_VERSION)
            replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def replace(draft: Path, path: Path) -> None:
    """Give `draft` the name `path`, for good: a power cut cannot take the name back."""
    os.replace(draft, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a store to `SCHEMA_VERSION`, within the open transaction: whole or, on any error, not at all.

    Raises `StoreError` for a newer schema, and where the steps would lose or change a row.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    _refuse_newer(path, version)
    if version == SCHEMA_VERSION:
        return
    before = _content(db)
    _step(db, version, SCHEMA_VERSION)
    if _content(db) != before:
        raise StoreError(f"{path}: migrating from schema {version} to {SCHEMA_VERSION} would change its rows")


def _step(db: sqlite3.Connection, version: int, until: int) -> None:
    """Take the steps from schema `version` (0: an empty file) to `until`, noting each from version 2 on."""
    for step in range(version + 1, until + 1):
        for statement in MIGRATIONS[step]:
            db.execute(statement)
        if step > 1:
            row = (step, __version__, datetime.now(UTC).isoformat(timespec="milliseconds"))
            db.execute("INSERT INTO versions VALUES (?, ?, ?)", row)
        db.execute(f"PRAGMA user_version = {step}")


def _content(db: sqlite3.Connection) -> tuple[bytes, ...]:
    """A digest of what each table of rows holds."""
    found = []
    tables = ("key, spec, result, digest FROM cells", "key, spec FROM plan", "key, error FROM failures")
    for columns in tables:
        whole = hashlib.sha256()
        for row in db.execute(f"SELECT {columns} ORDER BY rowid"):
            whole.update(repr(row).encode())
        found.append(whole.digest())
    return tuple(found)


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """The opened store. Reading prefers a connection that could write: closing it clears away the log."""
    if not write and network_file_system(path) is not None:
        modes = ["mode=ro&immutable=1"]  # nobody writes there, and its locks may not hold
    elif write or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        modes = ["mode=rw"]
    elif _log(path).exists():
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
                db.execute("PRAGMA synchronous = FULL")
                if write:
                    _log_ahead(db, path)
                else:
                    db.execute("PRAGMA query_only = ON")
                _check_tables(db, path)  # the log may hold another schema than the file alone
            return db
        except StoreError:
            if db is not None:
                db.close()
            if not modes:
                raise


def _log_ahead(db: sqlite3.Connection, path: Path) -> None:
    """Write ahead to a log. Raises `StoreError` where SQLite cannot keep one."""
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: SQLite keeps no write-ahead log there (journal mode {mode})")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """What happens within is committed together, or not at all; nobody else writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def clear(path: Path) -> Iterator[None]:
    """SQLite's and the file system's errors as one line that names the store."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        what = {"database is locked": "another process is writing to it"}.get(str(error), brief(error))
        raise StoreError(f"{path}: {what}") from None
