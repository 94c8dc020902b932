"""benchmarks/scheduling.py: its arithmetic, and a small run of it."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scheduling.py"


@pytest.fixture
def scheduling(monkeypatch):
    spec = importlib.util.spec_from_file_location("scheduling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scheduling", module)
    spec.loader.exec_module(module)
    return module


def row(executor, workers, size, batch):
    fixed = {"cells": "empty", "batches": 60, "start": 3.0, "cells_per_second": size / batch}
    return {"executor": executor, "workers": workers, "size": size, "batch": batch, **fixed}


def content():
    batches = {(1, 1): 0.011, (1, 64): 0.074, (2, 1): 0.006, (2, 64): 0.04}
    rows = [row("local", workers, size, batch) for (workers, size), batch in batches.items()]
    store = {"cell": 1e-4, "plan": 2e-5, "done": 3e-5, "commit": 5e-3, "row": 1e-4}
    store |= {"cell_bytes": 900.0, "row_bytes": 1e4}
    return {"cpu": "a processor", "cores": 2, "date": "2026-01-01T00:00:00", "rows": rows, "store": store}


def test_costs_are_those_of_one_worker_and_the_parents_bound_of_most(scheduling):
    costs = scheduling.costs_of(content(), "local")
    assert costs.cell == pytest.approx(0.001)
    assert costs.batch == pytest.approx(0.010)
    assert costs.parent == 0.04
    assert costs.before == pytest.approx(1.5e-4)


def test_the_slower_of_workers_and_parent_decides(scheduling):
    costs = scheduling.costs_of(content(), "local")
    few = scheduling.model(costs, 64_000, 2, 0.5)
    assert few["working"] == pytest.approx(32_000 * (0.010 / 64 + 0.001 + 0.5))
    assert few["parent"] == pytest.approx(1000 * 0.045 + 64_000 * 1e-4)
    assert few["total"] == few["before"] + few["working"]
    assert 0.99 < few["share"] < 1
    many = scheduling.model(costs, 64_000, 10_000, 0.5)
    assert many["total"] == many["before"] + many["parent"]
    assert many["share"] == pytest.approx(3.2 / many["total"])


def test_the_tables_hold_every_row_and_the_model(scheduling):
    text = scheduling.markdown(content())
    assert "| local | 1 | empty | 64 | 3.00 | 74.00 | 1.156 | 865 |" in text
    assert "| committed | 100 us | 5.00 ms |" in text
    assert text.count("| local | ") == 4 + 3


def test_a_small_run(scheduling, tmp_path, monkeypatch, capsys):
    small = ["--executors", "inline", "--batches", "4", "--store-cells", "400", "--repeats", "1"]
    words = ["--out", str(tmp_path), *small]
    monkeypatch.setenv(scheduling.MEETING, "")  # so that it is as before in the end
    monkeypatch.setattr(sys, "argv", ["scheduling.py", *words])
    assert scheduling.main() == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-scheduling.json")
    tables = capsys.readouterr().out.removesuffix(f"{path}\n").strip()
    monkeypatch.setattr(sys, "argv", ["scheduling.py", "--markdown", str(path)])
    assert scheduling.main() == 0
    assert capsys.readouterr().out.strip() == tables
    assert tables.count("| inline | 1 | empty |") == 2
    assert "| inline | 1 | real | 16 |" in tables


def test_a_missing_folder_is_refused(scheduling, tmp_path, monkeypatch, capsys):
    for words in ([], ["--out", str(tmp_path / "no")]):
        monkeypatch.setattr(sys, "argv", ["scheduling.py", *words])
        with pytest.raises(SystemExit):
            scheduling.main()
        assert "--out must name a folder that exists" in capsys.readouterr().err
