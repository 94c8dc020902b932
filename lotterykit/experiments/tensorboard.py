"""`log_tensorboard`: a store's rows as TensorBoard runs, curves as scalars and settings as hparams."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lotterykit.errors import StoreError
from lotterykit.experiments.tracking import Logged, Run, alone, load, run_of


def log_tensorboard(rows: Iterable[dict[str, Any]], path: str | Path) -> Logged:
    """Write a run for each of `rows` into the log directory `path`, made if missing.

    A run's folder is named by its cell and appears whole or not at all; one that is there stays as it is.
    Raises `LotterykitError` where tensorboard is missing, `StoreError` where `path` cannot be written.
    """
    path = Path(os.path.realpath(path))
    load("tensorboard", "tensorboard")
    summary = load("torch.utils.tensorboard.summary", "tensorboard")
    writer = load("torch.utils.tensorboard", "tensorboard").SummaryWriter
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: not a directory, TensorBoard reads one")
    added = there = 0
    # Beside the log directory, where TensorBoard does not look, unless that is a disk of its own.
    draft = path / ".new" if os.path.ismount(path) else path.with_name(f".{path.name}.new")
    with alone(path):
        path.mkdir(exist_ok=True)
        for row in rows:
            run = run_of(row)
            folder = path / run.folder
            if folder.exists():
                there += 1
                continue
            shutil.rmtree(draft, ignore_errors=True)  # what a killed process left
            try:
                _write(run, draft, writer, summary)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft, folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            added += 1
    return Logged(added, there)


def _write(run: Run, folder: Path, writer: Any, summary: Any) -> None:
    settings = {name: value if value is not None else "none" for name, value in run.settings.items()}
    with writer(str(folder)) as events:
        for part in summary.hparams(settings, run.metrics):
            events.file_writer.add_summary(part)
        for name, steps in run.curves.items():
            for step, value in steps:
                events.add_scalar(name, value, step)
        for name, value in run.metrics.items():
            events.add_scalar(name, value, 0)
        events.add_text("versions", ", ".join(f"{n} {v}" for n, v in sorted(run.versions.items())))
    for file in folder.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
