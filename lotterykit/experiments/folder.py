"""`made_folder`: a folder that is there and writable before hours of work, not after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lotterykit.errors import ArgumentError


@contextmanager
def made_folder(path: Path) -> Iterator[Path]:
    """`path` as a folder that a file can be written to; what was made and is empty in the end goes again.

    Raises `ArgumentError` where it cannot be made or written.
    """
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ArgumentError(f"{path}: {error.strerror or error}") from None
        yield path
    finally:
        for folder in missing:
            with suppress(OSError):  # not empty: it holds what was wanted of it
                folder.rmdir()
