"""`Store`: the rows of a sweep in one SQLite file; "done" is a committed row whose content checks.

One process writes (a lock file beside the store, and a writer number checked in every transaction, so that
a writer that lost its lock cannot add anything); any number read. A kill at any moment loses nothing that
was committed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic_core import from_json

from lotterykit.errors import ArgumentError, StoreError, brief
from lotterykit.experiments.lock import WriterLock
from lotterykit.experiments.schema import (
    check_ours,
    check_path,
    clear,
    connect,
    create,
    migrate,
    transaction,
)
from lotterykit.experiments.spec import CellSpec

MAX_DEPTH = 16  # of a result's JSON, so that whatever walks it ends
_CONTENT = "SELECT key, spec, result, digest FROM cells WHERE key = ?"


class Store:
    """A result store. `Store(path)` reads; `Store(path, write=True)` writes, creating the file if missing.

    A context manager. Raises `StoreError`, one line, for a file that is no store of ours, corrupt or from a
    newer version, for a path that cannot be used, and where another process is writing; such a file is
    left untouched.
    """

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = Path(path)
        self.write = write
        self._lock: WriterLock | None = None
        self._is_there()
        if write:
            self._lock = WriterLock(self.path)
        try:
            # Another process may have made, filled and closed it before we had the lock.
            if write and not self._is_there():
                create(self.path)
            self._db = connect(self.path, write)
            try:
                self._writer = self._begin_writing() if write else 0
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give up the lock; the store holds everything committed so far."""
        self._db.close()
        self._release()

    def _is_there(self) -> bool:
        """Whether the file exists. Raises `StoreError` for one that is no store of ours."""
        exists = check_path(self.path, self.write)
        if exists:
            check_ours(self.path)
        return exists

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # -- writing

    def _begin_writing(self) -> int:
        """Check the file, indexes and all, and become the writer: any older writer is refused from now on."""
        with clear(self.path):
            if faults := self._pages("PRAGMA integrity_check(1)"):
                raise StoreError(f"{self.path}: corrupt: {faults[0]}")
            with transaction(self._db):
                migrate(self._db, self.path)
                self._db.execute("UPDATE meta SET value = value + 1 WHERE name = 'writer'")
                writer = self._db.execute("SELECT value FROM meta WHERE name = 'writer'").fetchone()
        if writer is None:
            raise StoreError(f"{self.path}: corrupt: its table meta lacks the writer number")
        return writer[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if not self.write:
            raise StoreError(f"{self.path}: opened for reading")
        with clear(self.path), transaction(self._db):
            writer = self._db.execute("SELECT value FROM meta WHERE name = 'writer'").fetchone()
            if writer != (self._writer,):
                raise StoreError(f"{self.path}: another process has taken over writing")
            yield self._db

    def plan(self, cells: Iterable[CellSpec]) -> None:
        """Note that `cells` are wanted, for `status` and `resume`."""
        rows = [(cell.key(), _spec_text(cell), _now()) for cell in cells]
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", rows)

    def commit(self, rows: Iterable[dict[str, Any]]) -> int:
        """Write result rows in one transaction; returns how many. A good row is never replaced, a bad one is.

        Raises `StoreError` for a row whose key is not its spec's, or that is not JSON (NaN is not).
        """
        checked = [check_row(row) for row in rows]
        written = 0
        with self._transaction() as db:
            for key, spec, result in checked:
                old = db.execute(_CONTENT, (key,)).fetchone()
                if old is None or _fault(*old) is not None:
                    row = (key, spec, result, _digest(key, spec, result), _now())
                    db.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", row)
                    written += 1
                db.execute("DELETE FROM failures WHERE key = ?", (key,))
        return written

    def fail(self, cell: CellSpec, error: str, attempts: int) -> None:
        """Note that `cell` failed with `error` after so many attempts; `resume` tries it again."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)", (cell.key(), error, attempts, _now())
            )

    # -- reading

    def planned(self) -> list[CellSpec]:
        """The cells that sweeps on this store asked for, in order. Raises `StoreError` for a damaged one."""
        with clear(self.path):
            found = self._db.execute("SELECT key, spec FROM plan ORDER BY rowid").fetchall()
        cells: dict[CellSpec, None] = {}
        for key, spec in found:
            try:
                cells[_planned(spec)] = None
            except ValueError as error:
                raise StoreError(f"{self.path}: unreadable planned cell {str(key)[:12]}: {error}") from None
        return list(cells)

    def done(self, cells: Iterable[CellSpec]) -> tuple[set[CellSpec], dict[CellSpec, str]]:
        """Which of `cells` have a good row, and which a bad one with what is wrong with it."""
        good, bad = set(), {}
        for cell in cells:
            with clear(self.path):
                row = self._db.execute(_CONTENT, (cell.key(),)).fetchone()
            if row is None:
                continue
            fault = _fault(*row) or _other_spec(row[2], cell)
            if fault is None:
                good.add(cell)
            else:
                bad[cell] = fault
        return good, bad

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read within is of one moment, whoever writes meanwhile; this `Store` itself must not."""
        with clear(self.path):
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:  # SQLite ends it by itself on some errors
                self._db.execute("ROLLBACK")

    def rows(self, cells: Iterable[CellSpec] | None = None) -> Iterator[dict[str, Any]]:
        """The good result rows: those of `cells` in their order, or all in the order of their keys."""
        for row in self._stored(cells):
            if _fault(*row) is None:
                yield json.loads(row[2])

    def damaged(self, cells: Iterable[CellSpec] | None = None) -> int:
        """How many rows `rows` leaves out because their content fails."""
        return sum(_fault(*row) is not None for row in self._stored(cells))

    def brief(self) -> tuple[list[dict[str, Any]], int]:
        """The good rows in the order of their keys as reports read them, and how many are damaged.

        Without what makes a row large (curves, recovery by layer); `edges` is JSON text, of which few are
        ever parsed. A hundred thousand rows are read in seconds.
        """
        query = (
            "SELECT rowid, key, spec, result, digest, "
            "CASE WHEN json_valid(result) THEN json_extract(result, '$.edges') END "
            "FROM cells WHERE rowid > ? ORDER BY rowid LIMIT 1000"
        )
        rows: list[dict[str, Any]] = []
        damaged, last = 0, 0
        while True:
            with clear(self.path):
                page = self._db.execute(query, (last,)).fetchall()
            if not page:
                return sorted(rows, key=lambda row: row["key"]), damaged
            last = page[-1][0]
            for _, *stored, edges in page:
                row = None if _fault(*stored, parse=False) else _parsed(stored[2])
                if row is None or row.get("key") != stored[0]:
                    damaged += 1
                    continue
                for name in ("curve", "search"):
                    row.pop(name, None)
                if isinstance(recovery := row.get("recovery"), dict):
                    recovery.pop("per_layer", None)
                row["edges"] = edges
                if _within(row, MAX_DEPTH):
                    rows.append(row)
                else:
                    damaged += 1

    def _stored(self, cells: Iterable[CellSpec] | None) -> Iterator[tuple[str, str, str, str]]:
        with clear(self.path):
            if cells is None:
                found = self._db.execute("SELECT rowid FROM cells ORDER BY key").fetchall()
            else:
                places = (
                    self._db.execute("SELECT rowid FROM cells WHERE key = ?", (cell.key(),)).fetchone()
                    for cell in cells
                )
                found = [place for place in places if place is not None]
        for place in found:
            with clear(self.path):
                row = self._db.execute(
                    "SELECT key, spec, result, digest FROM cells WHERE rowid = ?", place
                ).fetchone()
            if row is not None:
                yield row

    def failures(self) -> dict[str, tuple[str, int]]:
        """Key -> (error, attempts) of the cells that failed and have no good row since."""
        with clear(self.path):
            found = self._db.execute("SELECT key, error, attempts FROM failures ORDER BY key").fetchall()
        return {key: (error, attempts) for key, error, attempts in found}

    def planned_count(self) -> int:
        """How many cells were asked for: more than before means that `planned` has news."""
        with clear(self.path):
            return self._db.execute("SELECT count(*) FROM plan").fetchone()[0]

    def committed(self, after: int = 0) -> list[tuple[int, str, str, float | None]]:
        """(number, key, UTC time of writing, seconds of computing) of the rows written since row `after`.

        A row that is written again has a new number. Contents are not checked: see `done`.
        """
        seconds = "CASE WHEN json_valid(result) THEN json_extract(result, '$.times.total') END"
        with clear(self.path):
            return self._db.execute(
                f"SELECT rowid, key, written_at, {seconds} FROM cells WHERE rowid > ? ORDER BY rowid",
                (after,),
            ).fetchall()

    def check(self) -> list[str]:
        """Everything wrong with the file, a line each: damaged pages; else rows whose content fails, then
        planned cells that cannot be read."""
        with clear(self.path):
            if pages := self._pages("PRAGMA integrity_check"):
                return pages
            rows = self._db.execute("SELECT key, spec, result, digest FROM cells ORDER BY key")
            faults = [
                f"row {str(row[0])[:12]}: {fault}" for row in rows if (fault := _fault(*row)) is not None
            ]
            for key, spec in self._db.execute("SELECT key, spec FROM plan ORDER BY rowid"):
                try:
                    _planned(spec)
                except ValueError as error:
                    faults.append(f"planned cell {str(key)[:12]}: {error}")
            return faults

    def _pages(self, pragma: str) -> list[str]:
        """What an integrity check complains of, a line each; SQLite puts many into one answer, under a title
        of stars, and gives up where the damage is too much."""
        lines: list[str] = []
        try:
            for (told,) in self._db.execute(pragma):
                lines += [line for line in told.splitlines() if line != "ok"]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            lines.append(brief(error))
        return [line for line in lines if not line.startswith("***")] or lines

    def copy_into(self, db: sqlite3.Connection) -> None:
        """Copy the store as it is at this moment, whoever writes meanwhile. Raises `sqlite3.Error`."""
        self._db.backup(db)


def check_writable(path: str | Path) -> None:
    """Raises `StoreError` where a sweep could not write to the store `path`; makes none that is missing."""
    path = Path(path)
    if check_path(path, write=True):
        Store(path, write=True).close()
    else:
        WriterLock(path).release()


def check_row(row: dict[str, Any]) -> tuple[str, str, str]:
    """(key, spec, result) of a result row as the store keeps them. Raises `StoreError` for a bad row."""
    try:
        cell = CellSpec(**row["spec"])
        result = json.dumps(row, allow_nan=False)
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"not a result row: {type(error).__name__}: {error}") from None
    if row.get("key") != cell.key():
        raise StoreError(f"not a result row: key {str(row.get('key'))[:12]} is not its spec's")
    return cell.key(), _spec_text(cell), result


def _fault(key: str, spec: str, result: str, digest: str, *, parse: bool = True) -> str | None:
    """What is wrong with a stored row, None where nothing is. The digest covers key, spec and result;
    `parse` looks into the result too."""
    if not all(isinstance(text, str) for text in (key, spec, result, digest)):
        return "not text"
    if _digest(key, spec, result) != digest:
        return "the digest does not match the content"
    if not parse:
        return None
    try:
        row = json.loads(result, parse_int=_integer, parse_constant=_integer)
    except (ValueError, RecursionError):
        return "the result is not JSON, or has numbers that are none of ours"
    # Rows of other results versions are kept; their keys cannot be recomputed by this one.
    if not isinstance(row, dict) or row.get("key") != key:
        return "the key is not the result's"
    if _deeper(row, MAX_DEPTH):
        return "the result is nested too deep"
    return None


def _integer(text: str) -> int:
    """An integer of a result, of at most 64 bits; raises `ValueError` for others, and for NaN."""
    if len(text) > len(str(-(2**63))):
        raise ValueError("an integer of more than 64 bits")
    return int(text)


def _deeper(value: Any, levels: int) -> bool:
    """Whether JSON is nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value
    return any(isinstance(v, dict | list) and (not levels or _deeper(v, levels - 1)) for v in inner)


def _within(value: Any, levels: int) -> bool:
    """Whether JSON has no integer that `_integer` refuses and is nested no deeper than so many levels."""
    for inner in value.values() if type(value) is dict else value:
        kind = type(inner)
        if kind is int and not -(10**19) < inner < 10**20:
            return False
        if (kind is dict or kind is list) and not (levels and _within(inner, levels - 1)):
            return False
    return True


def _parsed(result: str) -> dict[str, Any] | None:
    """A stored result, None where it is no JSON object, or nested deeper than 200 levels; twice as fast as
    `json.loads`."""
    try:
        row = from_json(result, cache_strings="keys", allow_inf_nan=False)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _other_spec(result: str, cell: CellSpec) -> str | None:
    """What is wrong where a stored result was computed from another spec than `cell`."""
    try:
        same = CellSpec(**json.loads(result)["spec"]) == cell
    except (ArgumentError, KeyError, TypeError):
        same = False
    return None if same else "the result is another spec's"


def _planned(spec: Any) -> CellSpec:
    """The cell that a stored spec is of. Raises `ValueError` where it is none."""
    try:
        return CellSpec(**json.loads(spec))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _spec_text(cell: CellSpec) -> str:
    return json.dumps(cell.model_dump(mode="json"), sort_keys=True)


def _digest(key: str, spec: str, result: str) -> str:
    return hashlib.sha256("\0".join((key, spec, result)).encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
