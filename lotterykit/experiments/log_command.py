"""`log_store`: a store's rows for the trackers that were asked for, and what to look at them with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lotterykit.experiments.display import tell_damaged
from lotterykit.experiments.mlflow import SCHEME, database, log_mlflow
from lotterykit.experiments.store import Store
from lotterykit.experiments.tensorboard import log_tensorboard


def log_store(store: Path, tensorboard: Path | None, mlflow: str | None) -> None:
    """Write the rows of `store` to the log directory `tensorboard`, the database `mlflow` or both; say so.

    The experiment of MLflow has the name of the store's file.
    """
    with Store(store) as opened:
        count = len(opened.committed())
        if tensorboard is not None:
            logged = log_tensorboard(_shown(opened.rows(), count), tensorboard)
            print(f"{logged}: tensorboard --logdir {shlex.quote(str(tensorboard))}")
        if mlflow is not None:
            logged = log_mlflow(_shown(opened.rows(), count), mlflow, store.stem)
            print(f"{logged}: mlflow ui --backend-store-uri {shlex.quote(SCHEME + str(database(mlflow)))}")
        tell_damaged(opened)


def _shown(rows: Iterable[dict[str, Any]], count: int) -> Iterable[dict[str, Any]]:
    """`rows` with a bar on a terminal: MLflow takes some runs a second."""
    from rich.console import Console
    from rich.progress import track

    return track(
        rows,
        "writing runs",
        count,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
