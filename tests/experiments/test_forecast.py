"""Tests of `lotterykit.experiments.forecast`."""

from __future__ import annotations

import pytest

from lotterykit.errors import ArgumentError
from lotterykit.experiments.forecast import (
    START_SECONDS,
    Cost,
    available_bytes,
    batch_bytes,
    check_memory,
    forecast,
    parameters,
    rounds,
    say_bytes,
    say_seconds,
    steps,
    trained_density,
    work,
)
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.spec import CellSpec, group

CELL = CellSpec(task="circle", method="snip", density=0.1)


def test_steps_and_parameters_are_exact():
    assert steps(CELL) == 10 * 282  # 9,000 samples in batches of 32
    assert steps(CellSpec(**{**CELL.model_dump(), "pipeline": "multi-shot"})) == 60 * 282
    assert steps(CellSpec(**{**CELL.model_dump(), "samples": 300, "batch_size": 10**6})) == 10
    popup = {"method": "edge-popup", "pipeline": "edge-popup"}
    assert steps(CellSpec(**{**CELL.model_dump(), **popup})) == 20 * 282
    assert rounds(CellSpec(**{**CELL.model_dump(), **popup})) == 0
    rung = {"method": "oracle-neurons", "density": "truth", "pipeline": "multi-shot"}
    assert steps(CellSpec(**{**CELL.model_dump(), **rung})) == 10 * 282
    assert parameters(CELL) == 2 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 4 + 4


def test_time_is_steps_times_cost_over_workers():
    batches = group(Grid(spec=CELL.model_dump(exclude_unset=True), seeds=16, oracle=False).cells(), 4)
    asked = []

    def calibrate(batch):
        asked.append(batch)
        return Cost(step=0.01, cell=0.5)

    two = forecast(batches, workers=2, calibrate=calibrate)
    assert len(asked) == 1
    assert two.seconds == pytest.approx(START_SECONDS + 2 * (2820 * 0.01 + 4 * 0.5))
    assert forecast(batches, workers=1, calibrate=calibrate).seconds > two.seconds
    assert two.workers == 2
    assert two.cells == 16
    assert two.memory > 3 * 300e6
    assert "16 cells: about 1 min 04 s with 2 workers" in str(two)


def test_one_long_batch_is_not_halved_by_two_workers():
    long = [[CellSpec(**{**CELL.model_dump(), "epochs": 1000})], [CELL]]
    found = forecast(long, workers=2, calibrate=lambda batch: Cost(0.001, 0))
    assert found.seconds == pytest.approx(START_SECONDS + 282.0)


def test_nothing_to_do_costs_nothing():
    assert forecast([], workers=2, calibrate=lambda batch: Cost(1, 1)).seconds == 0


def test_bad_workers():
    with pytest.raises(ArgumentError, match="workers"):
        forecast([[CELL]], workers=0, calibrate=lambda batch: Cost(1, 1))


def test_the_oracle_searches_nothing():
    shots = {**CELL.model_dump(), "pipeline": "multi-shot", "rounds": 3}
    assert rounds(CellSpec(**shots)) == 30
    oracle = CellSpec(**{**shots, "method": "oracle", "density": "truth"})
    assert (steps(oracle), rounds(oracle)) == (steps(CELL), 0)


def test_scoring_rounds_are_counted_for_each_cell():
    cells = [CellSpec(**{**CELL.model_dump(), "rounds": r}) for r in (1, 100)]
    found = forecast([cells], workers=1, calibrate=lambda batch: Cost(0, 2, 0.5))
    assert found.seconds == pytest.approx(START_SECONDS + 2 * 2 + 101 * 0.5)


def test_a_shape_that_cannot_be_measured_leaves_the_time_unknown():
    other = CellSpec(**{**CELL.model_dump(), "width": 50})
    found = forecast([[CELL], [other]], workers=2, calibrate=lambda b: Cost(1, 1) if b == [CELL] else None)
    assert found.seconds is None
    assert "2 cells: time unknown with 2 workers, about" in str(found)


def test_dearer_cells_weigh_more():
    def cost(**changes):
        return work(CellSpec(**{**CELL.model_dump(), **changes}))

    dearer = [
        {}, {"epochs": 20}, {"rounds": 100}, {"pipeline": "multi-shot"}, {"width": 1000},
        {"width": 1000, "depth": 10},
    ]  # fmt: skip
    assert [cost(**c) for c in dearer] == sorted(cost(**c) for c in dearer)


def test_the_density_that_is_trained():
    def density(**changes):
        return trained_density(CellSpec(**{**CELL.model_dump(), **changes}))

    assert density(density=0.25) == 0.25
    assert density(density=1.0, pipeline="multi-shot") == 1.0
    two = {"density": 0.25, "pipeline": "multi-shot", "shots": 2, "shot_epochs": 5, "epochs": 10}
    assert density(**two) == pytest.approx((5 * 1.0 + 5 * 0.5 + 10 * 0.25) / 20)
    assert density(**two | {"shot_epochs": 0}) == 0.25
    assert density(density=0.01, pipeline="multi-shot", shots=10**6) < 0.3


def test_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr("lotterykit.experiments.forecast.available_bytes", lambda: 2 * 10**9)
    wide = CellSpec(**{**CELL.model_dump(), "width": 3000})
    assert batch_bytes([wide]) > 48 * parameters(wide)
    check_memory([[CELL]] * 9, 1)
    check_memory([[wide]], 8)  # one batch takes one worker
    with pytest.raises(ArgumentError, match=r"width 3000, .* 2.0 GB are free: take fewer workers"):
        check_memory([[wide]] * 8, 8)
    with pytest.raises(ArgumentError, match=r"are free$"):
        check_memory([[wide] * 9], 8)
    monkeypatch.setattr("lotterykit.experiments.forecast.available_bytes", lambda: None)
    check_memory([[wide]] * 8, 8)


def test_the_machine_tells_its_memory():
    assert 1e8 < available_bytes() < 1e15


def test_words():
    told = {0: "1 s", 4.2: "5 s", 59.9: "1 min 00 s", 200: "3 min 20 s", 7500: "2 h 05 min"}
    assert {seconds: say_seconds(seconds) for seconds in told} == told
    assert [say_bytes(b) for b in (1, 9e8, 2.5e9)] == ["1 MB", "900 MB", "2.5 GB"]
