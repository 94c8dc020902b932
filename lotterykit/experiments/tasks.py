"""`Task`: cells that one worker runs together; what is tried again, and when a cell is given up."""

from __future__ import annotations

import functools
import importlib
import logging
import signal
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from pebble import ProcessExpired

from lotterykit.errors import ArgumentError, LotterykitError, StoreError
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import check_row

log = logging.getLogger(__name__)

SINGLE_TRIES = 2  # tries of each cell alone after its batch failed

Rows = list[dict[str, Any]]
Runner = Callable[..., Rows]


@dataclass(frozen=True)
class Failed:
    """A cell that no try got a row from."""

    cell: CellSpec
    error: str
    attempts: int


@dataclass
class Task:
    """Cells that one worker runs together; `attempts` counts the failed tries of these cells so far,
    `losses` the tries that ended with their machine."""

    cells: list[CellSpec]
    attempts: int = 0
    losses: int = 0


@dataclass(frozen=True)
class DataSets:
    """Data that cells of several batches may share: `key` names a cell's, `draw` makes what a key names.

    A runner takes them, as far as they are made already, as `data={key: ...}` if its module lists it in a
    dict `DATA_SETS` by the function's name.
    """

    key: Callable[[CellSpec], Hashable]
    draw: Callable[[Any], Any]


class Report(Protocol):
    """What a sweep is told while batches run."""

    def rows(self, cells: list[CellSpec], rows: Rows) -> None:
        """The rows of a finished batch."""

    def failed(self, failure: Failed) -> None:
        """A cell is given up."""

    def running(self, shares: list[tuple[list[CellSpec], float]]) -> None:
        """How much, in [0, 1], of each running batch is done."""


def runner_on(runner: str, device: str) -> str:
    """The name of a runner that trains on `device`: "package.module:function", with "@device" unless that is
    the CPU. Raises `ArgumentError` for what is no device; `check_device` tells whether it is there."""
    _check_name(device)
    return runner if device == "cpu" else f"{runner}@{device}"


def check_device(device: str) -> None:
    """Raises `ArgumentError` unless `device` is "cpu" or a CUDA device that torch sees."""
    _check_name(device)
    if device == "cpu":
        return
    import torch

    if int(device[5:] or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise ArgumentError(f"device {device!r} was asked for, but torch sees {seen} CUDA device(s)")


def _check_name(device: str) -> None:
    numbered = device.startswith("cuda:") and device[5:].isdecimal()
    if device not in ("cpu", "cuda") and not numbered:
        raise ArgumentError(f"device must be 'cpu', 'cuda' or 'cuda:<number>', got {device!r}")


def device_of(runner: str) -> str:
    """Where a runner of this name trains."""
    return runner.partition("@")[2] or "cpu"


def load_runner(name: str) -> Runner:
    """The function that `runner_on` names. Raises `ArgumentError` where there is none."""
    place, _, device = name.partition("@")
    module, _, function = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
        return functools.partial(found, device=device) if device else found
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"no runner {name!r}: {error}") from None


def data_sets(name: str) -> DataSets | None:
    """The data sets that the runner of this name can be given, None where it takes none."""
    module, _, function = name.partition("@")[0].partition(":")
    found: dict[str, DataSets] = getattr(importlib.import_module(module), "DATA_SETS", {})
    return found.get(function)


def after(task: Task, error: BaseException, report: Report) -> list[Task]:
    """What to try again after `task` failed: its cells alone, each at most `SINGLE_TRIES` times."""
    tried = task.attempts + 1
    lone = len(task.cells) == 1
    # A bad argument fails the same way each time; crashes and memory may not.
    hopeless = lone and (tried > SINGLE_TRIES or isinstance(error, ArgumentError))
    if hopeless:
        report.failed(Failed(task.cells[0], _describe(error), tried))
        return []
    count = len(task.cells)
    what = "a cell is tried again" if count == 1 else f"{count} cells are tried again, one by one"
    log.warning("%s: %s", what, _describe(error))
    return [Task([cell], tried, task.losses) for cell in task.cells]


def _describe(error: BaseException) -> str:
    if isinstance(error, ProcessExpired):
        code = error.exitcode or 0
        names = {-known.value: known.name for known in signal.Signals}
        return f"the worker died ({names.get(code, f'exit code {code}')})"
    text = " ".join(str(error).split())
    return text if isinstance(error, LotterykitError) else f"{type(error).__name__}: {text}"


def wrong_rows(cells: list[CellSpec], rows: Any) -> LotterykitError | None:
    """The complaint where a runner did not return one row for each cell, in order."""
    try:
        for cell, row in zip(cells, rows, strict=True):
            if check_row(row)[0] != cell.key():
                return LotterykitError("the runner returned a row of another cell")
    except (StoreError, TypeError, ValueError) as error:
        return LotterykitError(f"the runner returned no good rows: {error}")
    return None
