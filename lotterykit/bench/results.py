"""Results files: rows with the machine and versions they were made on, written whole or not at all."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lotterykit.bench.doctor import cpu_name
from lotterykit.errors import ArgumentError
from lotterykit.mask import write_atomically

PACKAGES = ("lotterykit", "torch", "numpy", "triton", "sparseprop", "sparselab")


def machine(device: str = "cpu") -> str:
    """The machine as results files are named: "x86_64-avx512", or the GPU's name."""
    if device == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"


def document(
    rows: Sequence[dict[str, Any]], *, repeats: int, device: str = "cpu", **more: Any
) -> dict[str, Any]:
    """A results file: what `rows` were measured on and with, then the rows. Times are microseconds a call."""
    return {
        "machine": machine(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "unit": "microseconds a call, or a training step of one replica",
        "statistic": "median of calls in alternating turns",
        "repeats": repeats,
        **more,
        "rows": list(rows),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """`content` as JSON in `path`, written whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """A results file. Raises `ArgumentError`, one line, for anything that is none of `document`'s."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ArgumentError(f"{path}: is no JSON, so no results of lotterykit bench") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise ArgumentError(f"{path}: holds no rows of lotterykit bench")
    return content


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not {"op", "shape", "density", "work", "dtype", "threads"} <= set(row):
        return False
    us = row.get("us")
    return isinstance(us, dict) and all(
        isinstance(t, dict) and isinstance(t.get("median"), int | float) and t["median"] > 0
        for t in us.values()
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
