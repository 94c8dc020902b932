"""`export`: a store's rows as CSV, one column a field, or as JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.store import Store

NOT_IN_CSV = ("edges",)  # lists of hundreds of numbers; JSON lines hold them


def export(store: Store, path: str | Path) -> int:
    """Write every good row of `store` to `path`, by its ending .csv or .jsonl; returns how many.

    In CSV a nested field becomes a dotted column ("metrics.after.accuracy"), a list its JSON text. The file
    appears whole or not at all. Raises `ArgumentError` for another ending, `StoreError` where it cannot be
    written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ArgumentError(f"{path}: export writes {' or '.join(WRITERS)}, got ending {path.suffix!r}")
    if path.absolute() == store.path.absolute():
        raise ArgumentError(f"{path}: is the store itself")
    with whole_file(path) as out:
        return WRITERS[path.suffix](store, out)


def _csv(store: Store, out: IO[str]) -> int:
    columns: dict[str, None] = {}
    for row in store.rows():
        columns |= dict.fromkeys(flat(row))
    writer = csv.DictWriter(out, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in store.rows():
        writer.writerow({name: _cell(value) for name, value in flat(row).items()})
        count += 1
    return count


def _jsonl(store: Store, out: IO[str]) -> int:
    count = 0
    for row in store.rows():
        out.write(json.dumps(row) + "\n")
        count += 1
    return count


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names, without `NOT_IN_CSV`.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in NOT_IN_CSV:
            continue
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Text for `path` that appears there whole, or not at all: temporary file, fsync, rename."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        draft.unlink(missing_ok=True)
        # "x" follows no link; text from a store may hold surrogates, which UTF-8 has not
        with open(draft, "x", encoding="utf-8", errors="backslashreplace", newline="") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
    finally:
        if draft.parent.is_dir():
            draft.unlink(missing_ok=True)


WRITERS: dict[str, Callable[[Store, IO[str]], int]] = {".csv": _csv, ".jsonl": _jsonl}
