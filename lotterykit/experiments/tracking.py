"""A result row as experiment trackers show it: settings, numbers, curves; and what every adapter checks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lotterykit.errors import ArgumentError, LotterykitError, StoreError, brief, shown
from lotterykit.experiments.export import flat
from lotterykit.experiments.lock import WriterLock
from lotterykit.experiments.schema import check_path


@dataclass(frozen=True)
class Run:
    """A cell's row: `settings` are its spec, `metrics` its last numbers by name ("after/accuracy"),
    `curves` lists of (step, value), steps from 1: epochs, or scoring rounds."""

    key: str
    name: str
    folder: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    versions: dict[str, str]


@dataclass(frozen=True)
class Logged:
    """How many runs an adapter wrote, and how many it found written already."""

    added: int
    there: int

    def __str__(self) -> str:
        return f"{self.added} runs written, {self.there} were there"


def run_of(row: Mapping[str, Any]) -> Run:
    """The `Run` of a result row; what is not finite in the row is left out.

    Raises `ArgumentError` for a row that lacks a field which every result row has, or holds it in another
    type: a digest shows that a row is as it was written, not who wrote it.
    """
    try:
        return _run_of(row)
    except KeyError as error:
        problem = f"it lacks {error}"
    except (AttributeError, TypeError, ValueError) as error:
        problem = brief(error)
    raise ArgumentError(f"row {str(row.get('key'))[:12]} is no result row: {problem}")


def _run_of(row: Mapping[str, Any]) -> Run:
    spec = dict(row["spec"])
    density = spec["density"] if isinstance(spec["density"], str) else f"{spec['density']:g}"
    name = f"{spec['method']} density {density} seed {spec['seed']} {row['key'][:12]}"
    numbers: dict[str, Any] = {
        "density": row["density"],
        "truth_density": row.get("truth_density"),
        **{f"{when}/{n}": v for when, told in row["metrics"].items() for n, v in (told or {}).items()},
        **{f"recovery/{n}": v for n, v in flat(row.get("recovery") or {}).items() if "per_layer" not in n},
        "collapse/no_live_path": int(row["collapse"]["no_live_path"]),
        "collapse/empty_layers": len(row["collapse"]["empty_layers"]),
        **{f"seconds/{n}": v for n, v in (row.get("times") or {}).items()},
    }
    for part in (spec["task"], spec["pipeline"], name):
        if "/" in part or part.startswith("."):  # these make a path
            raise ValueError(f"{shown(part)} is no name")
    return Run(
        key=row["key"],
        name=name,
        folder=f"{spec['task']}/{spec['pipeline']}/{name.replace(' ', '-')}",
        settings=spec,
        metrics={n: _number(v) for n, v in numbers.items() if v is not None},
        curves={n: steps for n, steps in _curves(row).items() if steps},
        versions={n: str(v) for n, v in (row.get("versions") or {}).items()},
    )


def _curves(row: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    metric = "accuracy" if "accuracy" in (row["metrics"].get("after") or {}) else "mse"
    values = {
        f"training/{metric}": row.get("curve") or (),
        f"search/{metric}": (row.get("search") or {}).get("curve") or (),
        "rounds/density": [scored["density"] for scored in row.get("rounds") or ()],
    }
    return {
        name: [(step, _number(value)) for step, value in enumerate(own, start=1) if value is not None]
        for name, own in values.items()
    }


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{shown(value)} is no number")
    return float(value)


def load(module: str, extra: str) -> ModuleType:
    """The imported `module`. Raises `LotterykitError` naming the `extra` that it needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        told = f"{extra} cannot be written ({error}): pip install 'lotterykit[{extra}]'"
        raise LotterykitError(told) from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other processes of ours from writing `path` meanwhile, which would write every run twice."""
    if not path.parent.is_dir():
        raise ArgumentError(f"{path}: the directory {path.parent} does not exist")
    lock = WriterLock(path)
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
    finally:
        lock.release()


def is_file(path: Path) -> bool:
    """Whether `path` is a file that can be written; False where it is missing. Raises `StoreError`."""
    return check_path(path, write=True)
