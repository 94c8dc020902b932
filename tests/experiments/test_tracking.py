"""Runs for TensorBoard and MLflow, read back by each tool's own reader; nothing leaves the machine."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import sys
from contextlib import closing

import fake_runner
import pytest

from lotterykit.cli import invoke
from lotterykit.errors import ArgumentError, LotterykitError, StoreError
from lotterykit.experiments.mlflow import database, log_mlflow
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store
from lotterykit.experiments.tensorboard import log_tensorboard
from lotterykit.experiments.tracking import run_of


def _rows(seeds=2):
    """Rows with a curve, a null in it, a curve of scores and scoring rounds."""
    cells = [CellSpec(task="circle", method="snip", density=0.1, seed=s, lr=0.01) for s in range(seeds)]
    told = {
        "curve": [0.25, None, 0.75],
        "search": {"curve": [0.5, 0.625], "diverged": False},
        "rounds": [{"round": 1, "density": 0.5, "no_live_path": False}],
        "versions": {"torch": "2.13"},
        "metrics": {"before": {"loss": None, "accuracy": 0.125}, "after": {"loss": 0.5, "accuracy": 0.75}},
    }
    return [fake_runner.row(cell) | told for cell in cells]


@pytest.fixture
def offline(monkeypatch):
    """Whoever connects or listens fails the test, even if it swallows the error."""
    tried = []

    def refuse(self, *address):
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket.socket, "listen", refuse)
    yield
    assert tried == []


def test_a_row_as_a_run():
    run = run_of(_rows()[0])
    assert run.settings["lr"] == 0.01
    assert (run.metrics["after/accuracy"], run.metrics["before/accuracy"]) == (0.75, 0.125)
    assert "before/loss" not in run.metrics  # it was not finite
    assert run.metrics["collapse/no_live_path"] == 0.0
    assert run.curves == {
        "training/accuracy": [(1, 0.25), (3, 0.75)],
        "search/accuracy": [(1, 0.5), (2, 0.625)],
        "rounds/density": [(1, 0.5)],
    }
    assert run.name.startswith("snip density 0.1 seed 0 ")
    assert run.folder.startswith("circle/single-shot/snip-density-0.1-seed-0-")


SPEC = _rows()[0]["spec"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"density": ...}, "lacks 'density'"),
        ({"collapse": {"empty_layers": []}}, "lacks 'no_live_path'"),
        ({"collapse": None}, "NoneType"),
        ({"metrics": ["accuracy"]}, "no attribute 'items'"),
        ({"metrics": {"after": {"accuracy": "0.5"}}}, "'0.5' is no number"),
        ({"curve": "0.5"}, "'0' is no number"),
        ({"recovery": 3}, "no attribute 'items'"),
        ({"spec": "circle"}, "dictionary update"),
        ({"spec": SPEC | {"task": "../../elsewhere"}}, "'../../elsewhere' is no name"),
        ({"spec": SPEC | {"method": "/snip"}}, "'/snip density"),
        ({"spec": SPEC | {"density": [0.1]}}, "unsupported format"),
    ],
)
def test_a_row_that_is_none_of_ours_is_one_line(change, says):
    row = {name: value for name, value in (_rows()[0] | change).items() if value is not ...}
    with pytest.raises(ArgumentError, match=rf"row {row['key'][:12]} is no result row: .*{re.escape(says)}"):
        run_of(row)


def _events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_reads_curves_numbers_and_settings(tmp_path, offline):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import plugin_data_pb2

    rows = _rows()
    logged = log_tensorboard(rows, tmp_path / "tb")
    assert (logged.added, logged.there) == (2, 0)
    assert os.listdir(tmp_path) == ["tb"]
    run = run_of(rows[0])
    events = _events(tmp_path / "tb" / run.folder)
    for name, steps in run.curves.items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == steps
    assert [e.value for e in events.Scalars("after/accuracy")] == [0.75]
    assert set(events.Tags()["scalars"]) == {*run.curves, *run.metrics}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["lr"].number_value == 0.01
    assert told["method"].string_value == "snip"
    assert told["invert"].bool_value is False


def test_tensorboard_gets_new_cells_only(tmp_path):
    pytest.importorskip("tensorboard")
    rows = _rows(3)
    log_tensorboard(rows[:2], tmp_path / "tb")
    files = {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()}
    (tmp_path / ".tb.new").mkdir()  # what a killed process leaves
    (tmp_path / ".tb.new" / "events.out.tfevents.0").write_text("half")
    assert str(log_tensorboard(rows, tmp_path / "tb")) == "1 runs written, 2 were there"
    after = {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()}
    assert files.items() < after.items()
    assert len(after) == 3
    assert os.listdir(tmp_path) == ["tb"]


def _mlflow():
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name)


def _found(path, experiment):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{path}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_mlflow_reads_params_metrics_and_curves(tmp_path, offline, monkeypatch):
    _mlflow()
    monkeypatch.chdir(tmp_path)
    rows = _rows()
    path = tmp_path / "mlflow.db"
    assert log_mlflow(rows, path, "study").added == 2
    assert sorted(os.listdir(tmp_path)) == ["mlflow.db"]
    client, runs = _found(path, "study")
    by_key = {run.data.tags["lotterykit.key"]: run for run in runs}
    assert set(by_key) == {row["key"] for row in rows}
    run, told = by_key[rows[1]["key"]], run_of(rows[1])
    assert (run.info.run_name, run.info.status) == (told.name, "FINISHED")
    assert run.data.params == {name: str(value) for name, value in told.settings.items()}
    assert told.metrics.items() <= run.data.metrics.items()
    for name, steps in told.curves.items():
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == steps
    assert run.data.tags["lotterykit.version.torch"] == "2.13"


def test_mlflow_gets_new_cells_only_and_mends_what_a_kill_left(tmp_path):
    _mlflow()
    rows = _rows(3)
    path = tmp_path / "mlflow.db"
    log_mlflow(rows[:2], path, "study")
    client, runs = _found(path, "study")
    whole = runs[0].info.run_id
    half = next(run for run in runs if run.info.run_id != whole)
    client.update_run(half.info.run_id, status="RUNNING")
    foreign = client.create_run(runs[0].info.experiment_id, run_name="mine")
    assert str(log_mlflow(rows, f"sqlite:///{path}", "study")) == "2 runs written, 1 were there"
    _, after = _found(path, "study")
    ids = {run.info.run_id for run in after}
    assert len(after) == 4
    assert {whole, foreign.info.run_id} < ids
    assert half.info.run_id not in ids


def test_mlflow_takes_a_local_file_that_is_its_own(tmp_path):
    for address in ("http://localhost:5000", "postgresql://me@host/db", "databricks://x"):
        with pytest.raises(ArgumentError, match="a local file only"):
            database(address)
    store = tmp_path / "s.sqlite"
    Store(store, write=True).close()
    (tmp_path / "text").write_text("no database, but long enough for one" * 10)
    before = store.read_bytes()
    for name in ("s.sqlite", "text"):
        with pytest.raises(StoreError, match="not an MLflow database"):
            database(tmp_path / name)
    assert store.read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "new.db")):
        assert database(tmp_path / "new.db") == tmp_path / "new.db"


@pytest.mark.parametrize(
    ("write", "module"),
    [(log_tensorboard, "tensorboard"), (lambda rows, path: log_mlflow(rows, path, "x"), "mlflow")],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, write, module):
    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(LotterykitError, match=rf"pip install 'lotterykit\[{module}\]'") as error:
        write(_rows(), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_the_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    with Store("s.sqlite", write=True) as store:
        store.commit(_rows())
    assert invoke(["sweep", "log", "s.sqlite"]) == 2
    assert "--tensorboard DIR, --mlflow FILE" in capsys.readouterr().err
    assert invoke(["sweep", "log", "s.sqlite", "--mlflow", "http://host"]) == 2
    assert "a local file only" in capsys.readouterr().err
    assert invoke(["sweep", "log", "s.sqlite", "--tensorboard", "no/where"]) == 2
    assert "the directory" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert invoke(["sweep", "log", "s.sqlite", "--tensorboard", "file"]) == 2
    assert "not a directory" in capsys.readouterr().err
    for says in ("2 runs written, 0 were there", "0 runs written, 2 were there"):
        assert invoke(["sweep", "log", "s.sqlite", "--tensorboard", "logs"]) == 0
        assert capsys.readouterr().out == f"{says}: tensorboard --logdir logs\n"
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "logs", "s.sqlite"]
