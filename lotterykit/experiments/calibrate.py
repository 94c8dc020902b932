"""`calibrator`: what a batch of a shape costs, from a few training steps and one round of its runner.

What would take too long even once is measured at a small shape and scaled by the guesses of `forecast`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from math import isfinite

from lotterykit.experiments.forecast import (
    Cost,
    guess_cell,
    guess_round,
    guess_step,
    rounds,
    score_epochs,
    train_samples,
    trained_density,
    widths,
)
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import device_of, load_runner

MOST_STEPS = 30
MOST_ROUNDS = 2
MOST_SECONDS = 2.0  # of either measurement, by the guess
SMALL = {"width": 100, "depth": 5, "samples": 1000, "batch_size": 32}

Batch = Sequence[CellSpec]


def calibrator(runner: str, threads: int) -> Callable[[Batch], Cost | None]:
    """A `calibrate` for `forecast`, measuring in this process. It says None where the batch fails: the
    sweep itself will tell why. Raises `ArgumentError` where there is no such runner."""
    run = load_runner(runner)

    def calibrate(batch: Batch) -> Cost | None:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            cell, scoring = _cell_seconds(batch, run)
            cost = Cost(_step_seconds(batch, device_of(runner)), cell, scoring)
            return cost if isfinite(cost.step + cost.cell + cost.round) else None
        except Exception:
            return None
        finally:
            torch.set_num_threads(before)

    return calibrate


def _step_seconds(batch: Batch, device: str) -> float:
    """Seconds of a training step of the whole batch."""
    guess = sum(map(guess_step, batch))
    measured = list(batch)
    if 3 * guess > MOST_SECONDS:
        measured = [small(batch[0])]
    once = sum(map(guess_step, measured))
    count = max(2, min(MOST_STEPS, int(MOST_SECONDS / once)))
    return _timed_steps(measured, count, device) * guess / once


def _timed_steps(batch: Batch, count: int, device: str) -> float:
    import torch

    from lotterykit.experiments.together import train_on
    from lotterykit.training.recipe import Recipe, Split
    from lotterykit.training.replicas import RunSpec
    from lotterykit.training.scored import ScoreTraining

    layers = widths(batch[0])
    generator = torch.Generator().manual_seed(0)

    def spec(cell: CellSpec, steps: int, scored: bool) -> RunSpec:
        size = min(cell.batch_size, train_samples(cell))
        x = torch.rand(steps * size, layers[0], generator=generator)
        y = torch.rand(steps * size, layers[-1], generator=generator)
        loss = "mse"
        if cell.task == "circle":
            y, loss = y.argmax(1), "cross_entropy"
        density = trained_density(cell)
        masks = {
            f"{2 * i}.weight": torch.rand(b, a, generator=generator) <= density
            for i, (a, b) in enumerate(itertools.pairwise(layers))
        }
        recipe = Recipe(loss, epochs=1, batch_size=size, lr=cell.lr)
        split = Split(x, y, x[:1], y[:1])
        if scored:
            return RunSpec(tuple(layers), split, recipe, scores=ScoreTraining(density=density))
        return RunSpec(tuple(layers), split, recipe, masks=masks)

    def seconds(scored: bool) -> float:
        train_on(device, [spec(cell, 1, scored) for cell in batch])
        specs = [spec(cell, count, scored) for cell in batch]
        began = time.perf_counter()
        train_on(device, specs)
        return (time.perf_counter() - began) / count

    scoring = max(map(score_epochs, batch))
    share = scoring / max(1, scoring + batch[0].epochs)  # of the steps that train scores
    return share * (seconds(True) if share else 0.0) + (1 - share) * (seconds(False) if share < 1 else 0.0)


def _cell_seconds(batch: Batch, run: Callable) -> tuple[float, float]:
    """Seconds of a cell without training and scoring, and of a scoring round: the runner on one seed's
    cells without training."""
    first = batch[0]
    chosen: dict[str, CellSpec] = {}
    for cell in batch:
        if cell.seed == first.seed:
            chosen.setdefault(cell.method, _untrained(cell))
    cells = list(chosen.values())
    scale = scale_round = 1.0
    if sum(guess_cell(cell) + cell.rounds * guess_round(cell) for cell in cells) > MOST_SECONDS:
        reference = small(cells[0])
        scale = guess_cell(cells[0]) / guess_cell(reference)
        scale_round = guess_round(cells[0]) / guess_round(reference)
        cells = [small(cell) for cell in cells]
    began = time.perf_counter()
    rows = run(cells)
    seconds = time.perf_counter() - began
    scored = sum(row["times"]["score"] for row in rows)
    scorings = max(1, sum(map(rounds, cells)))
    return max(0.0, seconds - scored) / len(cells) * scale, scored / scorings * scale_round


def _untrained(cell: CellSpec) -> CellSpec:
    changed = {**cell.model_dump(), "epochs": 0, "rounds": min(cell.rounds, MOST_ROUNDS)}
    if cell.pipeline == "multi-shot":
        changed |= {"shots": 1, "shot_epochs": 0}
    if cell.pipeline == "edge-popup":
        changed["score_epochs"] = 0
    return CellSpec(**changed)


def small(cell: CellSpec) -> CellSpec:
    """`cell` at a shape that is quick to measure: no size above `SMALL`'s."""
    values = cell.model_dump()
    return CellSpec(**{**values, **{name: min(values[name], most) for name, most in SMALL.items()}})
