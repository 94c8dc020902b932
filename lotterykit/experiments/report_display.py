"""What `lotterykit report` reads: stores under labels, the rows of their newest results version."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError
from lotterykit.experiments.display import say_damaged
from lotterykit.experiments.store import Store


def labelled(stores: Sequence[str]) -> dict[str, Path]:
    """Label -> store: NAME=FILE, else the file's name without ending, with its folders where they are needed.

    Raises `ArgumentError` for two equal labels, and a store given twice.
    """
    given = [(text, Path(text)) for text in stores]
    named = []
    for text, path in given:
        name, sign, file = text.partition("=")
        named.append((name, Path(file)) if sign and name and not path.exists() else ("", path))
    depth = 1
    while True:
        labels = [name or str(Path(*path.with_suffix("").absolute().parts[-depth:])) for name, path in named]
        if len(set(labels)) == len(labels):
            return dict(zip(labels, (path for _, path in named), strict=True))
        depth += 1
        if depth > max(len(path.absolute().parts) for _, path in named):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ArgumentError(f"two sweeps are called {twice}: give other names, as NAME=FILE")


def report_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the store's newest results version; what is left out is said on stderr."""
    gc.disable()  # a hundred thousand rows are millions of objects, and none of them is garbage
    try:
        with Store(path) as store:
            rows, damaged = store.brief()
    finally:
        gc.enable()
    versioned = [row for row in rows if type(row.get("results_version", 0)) is int]
    say_damaged(damaged + len(rows) - len(versioned), path)
    rows = versioned
    newest = max((row.get("results_version", 0) for row in rows), default=0)
    current = [row for row in rows if row.get("results_version", 0) == newest]
    if len(current) < len(rows):
        print(
            f"{path}: {len(rows) - len(current)} rows of older results versions are left out", file=sys.stderr
        )
    return current
