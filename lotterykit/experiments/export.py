"""`export`: a store's rows as CSV or Parquet, one column a field, or as JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.store import Store

NOT_IN_COLUMNS = ("edges",)  # lists of hundreds of numbers; JSON lines hold them
SURROGATES = "backslashreplace"  # text from a store may hold some, which UTF-8 has not
GROUP = 10_000  # rows of a Parquet row group: what is held in memory at once


def export(store: Store, path: str | Path) -> int:
    """Write every good row of `store` to `path`, by its ending .csv, .parquet or .jsonl; returns how many.

    In CSV and Parquet a nested field becomes a dotted column ("metrics.after.accuracy"). Parquet columns are
    of booleans, 64-bit integers, floats or texts, or lists of one of these; what is none of them throughout
    is JSON text, as every list is in CSV. The rows are those of one moment, whatever is committed meanwhile;
    the file appears whole or not at all.
    Raises `ArgumentError` for another ending and where pyarrow, the extra [parquet], is missing, `StoreError`
    where it cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ArgumentError(f"{path}: export writes {', '.join(WRITERS)}, got ending {path.suffix!r}")
    if path.absolute() == store.path.absolute():
        raise ArgumentError(f"{path}: is the store itself")
    if path.suffix == ".parquet":
        _need_pyarrow()
    with whole_file(path) as out, store.snapshot():
        return WRITERS[path.suffix](store, out)


def _csv(store: Store, out: IO[bytes]) -> int:
    columns: dict[str, None] = {}
    for row in store.rows():
        columns |= dict.fromkeys(flat(row))
    text = io.TextIOWrapper(out, encoding="utf-8", errors=SURROGATES, newline="")
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in store.rows():
        writer.writerow({name: _cell(value) for name, value in flat(row).items()})
        count += 1
    text.detach()
    return count


def _jsonl(store: Store, out: IO[bytes]) -> int:
    count = 0
    for row in store.rows():
        out.write((json.dumps(row) + "\n").encode())
        count += 1
    return count


def _parquet(store: Store, out: IO[bytes]) -> int:
    import pyarrow
    import pyarrow.parquet

    kinds: dict[str, set[str]] = {}
    for row in store.rows():
        for name, value in flat(row).items():
            kinds.setdefault(name, set()).add(_kind(value))
    columns = {name: _common(found) for name, found in kinds.items()}
    scalars = {
        "bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64(), "text": pyarrow.string(),
        "": pyarrow.null(),
    }  # fmt: skip
    types = scalars | {f"{name} list": pyarrow.list_(kind) for name, kind in scalars.items()}
    types["json"] = pyarrow.string()
    schema = pyarrow.schema([(_text(name), types[column]) for name, column in columns.items()])
    count = 0
    group: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            group.clear()

        for row in store.rows():
            fields = flat(row).items()
            group.append({_text(name): _as(columns[name], value) for name, value in fields})
            count += 1
            if len(group) == GROUP:
                flush()
        flush()
    return count


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ArgumentError(
            "Parquet files are written by pyarrow: pip install 'lotterykit[parquet]', or export to .csv"
        ) from None


def _kind(value: Any) -> str:
    """What a value is in a Parquet column; "" for nothing, "json" for what has no type of its own there.

    >>> [_kind(value) for value in (None, True, 3, 2**64, .5, "a", [1, .5], [], [[1]])]
    ['', 'bool', 'int', 'json', 'float', 'text', 'float list', ' list', 'json']
    """
    if isinstance(value, list):
        inner = _common({_kind(part) for part in value})
        return "json" if inner == "json" or inner.endswith(" list") else f"{inner} list"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**63 else "json"
    names = {type(None): "", bool: "bool", float: "float", str: "text"}
    return names.get(type(value), "json")


def _common(kinds: set[str]) -> str:
    """The kind that holds values of all these kinds.

    >>> [_common(kinds) for kinds in ({"", "int"}, {"int", "float"}, {"int", "text"}, {" list", "int list"})]
    ['int', 'float', 'json', 'int list']
    """
    kinds = kinds - {""}
    if kinds and all(kind.endswith(" list") for kind in kinds):
        inner = _common({kind.removesuffix(" list") for kind in kinds})
        return "json" if inner == "json" else f"{inner} list"
    if kinds == {"int", "float"}:
        return "float"
    return kinds.pop() if len(kinds) == 1 else "json" if kinds else ""


def _as(kind: str, value: Any) -> Any:
    """`value` as a Parquet column of this kind holds it."""
    if isinstance(value, str):
        return _text(value)
    if kind == "text list" and value is not None:
        return [_as("text", part) for part in value]
    return json.dumps(value) if kind == "json" and value is not None else value


def _text(text: str) -> str:
    return text.encode("utf-8", SURROGATES).decode()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names, without `NOT_IN_COLUMNS`.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in NOT_IN_COLUMNS:
            continue
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file for `path` that appears there whole, or not at all: temporary file, fsync, rename."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as out:  # "x" follows no link
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # where there could be no draft: a name too long, no such folder
            draft.unlink()


@contextmanager
def whole_text(path: Path) -> Iterator[IO[str]]:
    """`whole_file` for text, its line ends as they are written."""
    with whole_file(path) as out:
        text = io.TextIOWrapper(out, encoding="utf-8", errors=SURROGATES, newline="")
        yield text
        text.flush()
        text.detach()


WRITERS: dict[str, Callable[[Store, IO[bytes]], int]] = {
    ".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl,
}  # fmt: skip
