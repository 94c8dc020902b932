"""Tests of `lotterykit.experiments.calibrate`."""

from __future__ import annotations

import pytest

from lotterykit.data.planted import TASKS
from lotterykit.errors import ArgumentError
from lotterykit.experiments import calibrate
from lotterykit.experiments.calibrate import MOST_SECONDS, SMALL, calibrator
from lotterykit.experiments.forecast import guess_cell, guess_round, guess_step
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.spec import CellSpec

CELL = {"task": "circle", "method": "snip", "density": 0.1}
REAL = "lotterykit.experiments.plant_and_seek:run_batch"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_measured(task):
    spec = {"task": task, "method": ["snip", "random"], "density": [0.1, "truth"]}
    cells = Grid(spec={**spec, "width": 40, "pipeline": "multi-shot", "samples": 200}).cells()
    cost = calibrator(REAL, 1)(cells)
    assert min(cost.step, cost.cell, cost.round) > 0
    assert cost.step + cost.cell + cost.round < 10


def test_score_training_is_measured():
    spec = {"task": "circle", "method": ["edge-popup", "edge-popup-global"], "density": [0.1, "truth"]}
    cells = Grid(spec={**spec, "width": 40, "pipeline": "edge-popup", "samples": 200}).cells()
    cost = calibrator(REAL, 1)(cells)
    assert min(cost.step, cost.cell) > 0


@pytest.mark.parametrize(
    ("runner", "cell"),
    [
        ("raise_on_seed_3", {"seed": 3}),
        ("no_memory", {}),
        ("good", {"lr": 1e30, "noise": 1e6, "task": "relu"}),
    ],
)
def test_what_fails_has_no_cost_or_some(runner, cell):
    cost = calibrator(f"fake_runner:{runner}", 1)([CellSpec(**{**CELL, "width": 10, **cell})])
    assert (cost is None) == (runner != "good")


def test_no_such_runner():
    with pytest.raises(ArgumentError, match="no runner"):
        calibrator("fake_runner:none", 1)


@pytest.mark.parametrize(
    "dear",
    [
        {"width": 30_000},
        {"depth": 1000},
        {"samples": 10**8},
        {"samples": 10**8, "batch_size": 10**6},
        {"rounds": 10**6},
        {"samples": 300, "batch_size": 10**6},
        {"epochs": 10**6, "shots": 10**6, "shot_epochs": 10**6, "pipeline": "multi-shot"},
    ],
    ids=str,
)
def test_nothing_dear_is_ever_measured(monkeypatch, dear):
    """By the guess, of which test_forecast asserts no more than the order."""
    seen = []

    def timed(batch, count, device):
        seen.append(sum(map(guess_step, batch)) * (count + 1))
        assert all(cell.batch_size * count * cell.width < 1e9 for cell in batch if cell.samples > 10**6)
        return sum(map(guess_step, batch))

    def run(cells):
        seen.append(sum(guess_cell(cell) + cell.rounds * guess_round(cell) for cell in cells))
        assert all(cell.epochs == 0 and (cell.pipeline == "single-shot" or cell.shots == 1) for cell in cells)
        return [{"times": {"score": 0.01}} for _ in cells]

    monkeypatch.setattr(calibrate, "_timed_steps", timed)
    monkeypatch.setattr(calibrate, "load_runner", lambda name: run)
    cell = CellSpec(**{**CELL, **dear})
    cost = calibrator("any", 1)([cell])
    assert len(seen) == 2
    assert max(seen) <= 2 * MOST_SECONDS
    assert cost.step == pytest.approx(guess_step(cell))


def test_a_small_shape_stands_for_a_dear_one():
    big = CellSpec(**{**CELL, "width": 5000, "depth": 4, "batch_size": 20})
    found = calibrate.small(big)
    assert (found.width, found.depth, found.batch_size, found.samples) == (
        SMALL["width"], 4, 20, SMALL["samples"],
    )  # fmt: skip
