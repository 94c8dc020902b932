"""Tests of `lotterykit.experiments.forecast`."""

from __future__ import annotations

import pytest

from lotterykit.errors import ArgumentError
from lotterykit.experiments.forecast import (
    START_SECONDS,
    Cost,
    calibrator,
    forecast,
    parameters,
    say_bytes,
    say_seconds,
    steps,
)
from lotterykit.experiments.spec import CellSpec, Grid, group

CELL = CellSpec(task="circle", method="snip", density=0.1)


def test_steps_and_parameters_are_exact():
    assert steps(CELL) == 10 * 282  # 9,000 samples in batches of 32
    assert steps(CellSpec(**{**CELL.model_dump(), "pipeline": "multi-shot"})) == 60 * 282
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


@pytest.mark.parametrize("task", ["circle", "relu", "helix"])
def test_calibration_measures_something(task):
    spec = {"task": task, "method": ["snip", "random"], "density": [0.1, "truth"]}
    cells = Grid(spec={**spec, "width": 40, "pipeline": "multi-shot", "samples": 200}).cells()
    cost = calibrator("fake_runner:good", 1)(cells)
    assert 0 < cost.step < 10
    assert 0 < cost.cell < 10


def test_words():
    told = {0: "1 s", 4.2: "5 s", 59.9: "1 min 00 s", 200: "3 min 20 s", 7500: "2 h 05 min"}
    assert {seconds: say_seconds(seconds) for seconds in told} == told
    assert [say_bytes(b) for b in (1, 9e8, 2.5e9)] == ["1 MB", "900 MB", "2.5 GB"]
