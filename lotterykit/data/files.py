"""Files of data sets: opened plain or gzip, read no further than what was expected, labels checked."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = (
    1 << 20
)  # bytes asked of a stream at once, so that memory follows what the file holds, not what it says


def find_file(folder: Path, name: str) -> Path | None:
    """`folder/name`, or `folder/name.gz`, whichever is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.exists(path)), None)


def file_in(folder: Path, name: str) -> Path:
    """As `find_file`; raises `ArgumentError` where neither is there."""
    path = find_file(folder, name)
    if path is None:
        raise ArgumentError(f"{folder / name}: no such file, plain or with .gz")
    return path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a plain or gzip file (told by its first bytes, not by its name).

    Raises `ArgumentError`, also for what fails while the stream is read: damaged gzip data, an I/O error."""
    try:
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{path}: found something that is no regular file, expected a file")
        with path.open("rb") as raw:
            compressed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArgumentError(f"{path}: damaged gzip data: {error}") from None
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_at_most(stream: BinaryIO, most: int) -> bytearray:
    """What `stream` still holds, at most `most` bytes of it; never more memory than the bytes that come."""
    data = bytearray()
    while len(data) < most:
        part = stream.read(min(CHUNK, most - len(data)))
        if not part:
            break
        data += part
    return data


def checked_labels(y: Tensor, classes: int, path: Path) -> Tensor:
    """`y [N]` as int64; raises `ArgumentError` where one lies outside 0..classes - 1."""
    y = y.to(torch.int64)
    wrong = ((y < 0) | (y >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ArgumentError(f"{path}: found label {int(y[first])} at {first}, expected 0 to {classes - 1}")
    return y
