"""`log_mlflow`: a store's rows as runs of one MLflow experiment in a local SQLite file; no server."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError, StoreError
from lotterykit.experiments.tracking import Logged, Run, alone, is_file, load, run_of

KEY = "lotterykit.key"  # the tag that says which cell a run is of
MOST_METRICS = 1000  # that MLflow takes at once
SCHEME = "sqlite:///"


def log_mlflow(rows: Iterable[dict[str, Any]], path: str | Path, experiment: str) -> Logged:
    """Write a run for each of `rows` into `experiment` of the MLflow database `path`, made if missing.

    A cell that has a finished run there gets no other; a run that a kill left unfinished is written anew.
    Nothing is sent anywhere: a database of our own process, MLflow's telemetry is off. Raises
    `LotterykitError` where mlflow is missing, `ArgumentError` for an address of a server, `StoreError` for a
    file that is no MLflow database or that MLflow refuses.
    """
    path = database(path)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
    load("sqlalchemy", "mlflow")
    load("alembic", "mlflow")
    errors = (
        load("mlflow.exceptions", "mlflow").MlflowException,
        load("sqlalchemy.exc", "mlflow").SQLAlchemyError,
    )
    uri = SCHEME + str(path)
    with alone(path), _quiet():
        try:
            client = load("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=uri, registry_uri=uri)
            return _log(rows, client, _experiment(client, experiment, path))
        except errors as error:
            raise StoreError(f"{path}: MLflow refuses: {str(error).splitlines()[0]}") from None


def database(path: str | Path) -> Path:
    """The file of an MLflow database given as a path or as "sqlite:///..."; it need not exist.

    Raises `ArgumentError` for another address and a path with a "?", `StoreError` for a file of something
    else.
    """
    text = str(path)
    if "://" in text and not text.startswith(SCHEME):
        raise ArgumentError(f"runs go to a local file only, as mlflow.db or {SCHEME}mlflow.db, got {text}")
    path = Path(text.removeprefix(SCHEME)).absolute()
    if "?" in str(path):  # SQLAlchemy would open the file before it
        raise ArgumentError(f"the path of an MLflow database must hold no '?', got {path}")
    if not is_file(path) or not path.stat().st_size:
        return path
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise StoreError(f"{path}: not an MLflow database: {error}") from None
    if tables and not tables >= {"alembic_version", "experiments", "runs"}:
        raise StoreError(f"{path}: not an MLflow database: it holds {', '.join(sorted(tables))}")
    return path


def _experiment(client: Any, name: str, path: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(name, artifact_location=path.with_name("mlartifacts").as_uri())


def _log(rows: Iterable[dict[str, Any]], client: Any, experiment: str) -> Logged:
    written = set()
    for run in _runs(client, experiment):
        if run.info.status == "FINISHED":
            written.add(run.data.tags[KEY])
        else:
            client.delete_run(run.info.run_id)
    added = there = 0
    for row in rows:
        run = run_of(row)
        if run.key in written:
            there += 1
        else:
            _write(run, client, experiment)
            added += 1
    return Logged(added, there)


def _runs(client: Any, experiment: str) -> list[Any]:
    """The runs of ours in `experiment`."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{KEY}` != ''", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _write(run: Run, client: Any, experiment: str) -> None:
    entities = load("mlflow.entities", "mlflow")
    tags = {KEY: run.key, **{f"lotterykit.version.{name}": value for name, value in run.versions.items()}}
    now = round(time.time() * 1000)
    metrics = [entities.Metric(name, value, now, 0) for name, value in run.metrics.items()]
    for name, steps in run.curves.items():
        metrics += [entities.Metric(name, value, now, step) for step, value in steps]
    params = [entities.Param(name, str(value)) for name, value in run.settings.items()]
    made = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
    for start in range(0, len(metrics), MOST_METRICS - len(params)):
        some = metrics[start : start + MOST_METRICS - len(params)]
        client.log_batch(made, metrics=some, params=() if start else params)
    client.set_terminated(made)  # last: it says that the run is whole


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what MLflow tells of the making of its tables."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
