"""`forecast`: how long a sweep will take and how much memory and disk; `work`: a guess of a cell's cost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lotterykit.errors import ArgumentError
from lotterykit.experiments.resources import WORKER_BYTES
from lotterykit.experiments.spec import EDGE_POPUP, LADDER, CellSpec

INPUTS_OUTPUTS = {"circle": (2, 4), "relu": (1, 1), "helix": (1, 3)}
ROW_BYTES = 12_000  # of the store, a cell
START_SECONDS = 3.0  # until a spawned worker has loaded torch
EVALUATED = 4096  # samples that are evaluated at once

# Guesses in seconds for one core; they order batches, bound them and say what is too dear to be measured.
# `calibrate` measures what a forecast tells. Taken at widths 100 to 1000 on one core with AVX2.
LAYER_SECONDS = 5e-7  # of a training step, a layer
FLOP_SECONDS = 1 / 6e10  # of a dense layer
SPARSE = 2.0  # what a kept weight of a sparse layer costs, in weights of a dense one
TRUTH_DENSITY = 0.01  # stands for "truth" where only the cost matters
WEIGHT_SECONDS = 5e-10  # the optimizer, a weight and step
SELECT_SECONDS = 1e-9  # a step's mask from the scores, a weight and step of score training
SCORE_SECONDS = 1.5e-7  # scoring and selecting, a weight and round
CELL_SECONDS = 5e-3  # planting and the rest that every cell needs
PLANT_SECONDS = 1.5e-7  # planting and copying, a weight
SAMPLE_SECONDS = 2e-7  # drawing, a sample


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step of the whole batch, of a scoring round of a cell, and of what a cell needs
    beside them."""

    step: float
    cell: float
    round: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """Time in seconds (None: unknown), memory (all processes together) and disk in bytes."""

    cells: int
    workers: int
    seconds: float | None
    memory: int
    disk: int

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers != 1)}"
        time = "time unknown" if self.seconds is None else f"about {say_seconds(self.seconds)}"
        return (
            f"{self.cells} cells: {time} with {workers}, "
            f"about {say_bytes(self.memory)} of memory, {say_bytes(self.disk)} on disk"
        )


def train_samples(cell: CellSpec) -> int:
    """Training samples; the last tenth is the test split."""
    return cell.samples - cell.samples // 10


def steps(cell: CellSpec) -> int:
    """Optimizer steps of a cell."""
    epochs = cell.epochs + (cell.shots * cell.shot_epochs if _searches_in_shots(cell) else 0)
    return (epochs + score_epochs(cell)) * -(-train_samples(cell) // cell.batch_size)


def score_epochs(cell: CellSpec) -> int:
    """Epochs of score training."""
    return cell.score_epochs if cell.method in EDGE_POPUP else 0


def rounds(cell: CellSpec) -> int:
    """Scoring rounds of a cell, over all shots."""
    if cell.method in ("oracle", *EDGE_POPUP, *LADDER):
        return 0
    return cell.rounds * (cell.shots if _searches_in_shots(cell) else 1)


def _searches_in_shots(cell: CellSpec) -> bool:
    return cell.pipeline == "multi-shot" and cell.method not in ("oracle", *LADDER)


def parameters(cell: CellSpec) -> int:
    """Weights and biases of the mother network."""
    return sum(a * b + b for a, b in itertools.pairwise(widths(cell)))


def trained_density(cell: CellSpec) -> float:
    """The density that the cell's weights have while they are trained, the mean over its steps."""
    final = TRUTH_DENSITY if cell.density == "truth" else float(cell.density)
    if not _searches_in_shots(cell) or not cell.shots * cell.shot_epochs:
        return final
    shots = min(cell.shots, 1000)  # the mean of more differs by nothing
    mean = sum(final ** (number / shots) for number in range(shots)) / shots
    searching = cell.shots * cell.shot_epochs
    return (searching * mean + cell.epochs * final) / (searching + cell.epochs)


def guess_step(cell: CellSpec) -> float:
    """Seconds of a training step of a cell alone on a core, roughly; the mean over scores and weights."""
    flops = 6 * min(cell.batch_size, train_samples(cell)) * FLOP_SECONDS + WEIGHT_SECONDS
    dense = parameters(cell) * (flops + SELECT_SECONDS)
    sparse = parameters(cell) * flops * min(1.0, SPARSE * trained_density(cell))
    share = score_epochs(cell) / max(1, score_epochs(cell) + cell.epochs)
    return LAYER_SECONDS * cell.depth + share * dense + (1 - share) * sparse


def guess_cell(cell: CellSpec) -> float:
    """Seconds of a cell beside training and scoring, roughly: data, planting, evaluating twice."""
    evaluated = cell.samples // 10 if cell.task == "circle" else cell.samples
    weight = PLANT_SECONDS + 4 * evaluated * FLOP_SECONDS
    return CELL_SECONDS + cell.samples * SAMPLE_SECONDS + parameters(cell) * weight


def guess_round(cell: CellSpec) -> float:
    """Seconds of a scoring round of a cell, roughly."""
    return parameters(cell) * SCORE_SECONDS


def work(cell: CellSpec) -> float:
    """A cell's seconds on a core, roughly: orders and bounds batches and weighs progress, no more."""
    return steps(cell) * guess_step(cell) + rounds(cell) * guess_round(cell) + guess_cell(cell)


def forecast(
    batches: Sequence[Sequence[CellSpec]],
    *,
    workers: int,
    calibrate: Callable[[Sequence[CellSpec]], Cost | None],
) -> Forecast:
    """The forecast for `batches` (`spec.group`); `calibrate` is asked once for each shape of batch, and
    says None where it cannot tell."""
    if workers < 1:
        raise ArgumentError(f"workers must be at least 1, got {workers}")
    costs: dict[tuple, Cost | None] = {}
    seconds: list[float] = []
    for batch in batches:
        first = batch[0]
        shape = (first.pipeline, first.task, first.depth, first.width, first.recipe_key())
        if shape not in costs:
            costs[shape] = calibrate(batch)
        cost = costs[shape]
        if cost is not None:
            scored = sum(map(rounds, batch))
            trained = cost.step * max(map(steps, batch))
            seconds.append(trained + cost.cell * len(batch) + cost.round * scored)
    cells = sum(len(batch) for batch in batches)
    workers = max(1, min(workers, len(batches)))
    total: float | None = START_SECONDS + max(sum(seconds) / workers, max(seconds)) if seconds else 0.0
    if None in costs.values():
        total = None
    return Forecast(cells, workers, total, _memory(batches, workers), cells * ROW_BYTES)


def _memory(batches: Sequence[Sequence[CellSpec]], workers: int) -> int:
    if not batches:
        return 0
    return (workers + 1) * WORKER_BYTES + workers * max(map(batch_bytes, batches))


def batch_bytes(batch: Sequence[CellSpec]) -> int:
    """Memory of the arrays of a batch: data, weights with gradients and Adam state, activations."""
    first = batch[0]
    seeds = len({(cell.seed, cell.gain, cell.noise) for cell in batch})
    data = 4 * first.samples * (widths(first)[0] + 2 * widths(first)[-1])
    order = 8 * first.samples
    network = 4 * parameters(first) * 12
    at_once = max(min(first.batch_size, train_samples(first)), min(EVALUATED, first.samples))
    activations = 4 * 2 * sum(widths(first)) * at_once
    return seeds * data + len(batch) * (network + activations + data + order)


def check_memory(batches: Sequence[Sequence[CellSpec]], workers: int) -> None:
    """Raises `ArgumentError` where the dearest batches, one a worker, exceed the machine's memory."""
    workers = max(1, min(workers, len(batches)))
    needed, there = _memory(batches, workers), available_bytes()
    if there is None or needed <= there:
        return
    dearest = max(batches, key=batch_bytes)
    first = dearest[0]
    alone = _memory([dearest], 1) <= there
    raise ArgumentError(
        f"{workers} worker{'s' * (workers > 1)} would need about {say_bytes(needed)} of memory (width "
        f"{first.width}, depth {first.depth}, batch_size {first.batch_size}, {first.samples} samples), "
        f"{say_bytes(there)} are free" + (": take fewer workers" if workers > 1 and alone else "")
    )


def available_bytes() -> int | None:
    """Memory that this machine could give to new processes, where it tells."""
    with suppress(OSError, ValueError, IndexError):  # elsewhere than on Linux, what is installed has to do
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def widths(cell: CellSpec) -> list[int]:
    """Neurons of each layer, inputs first."""
    inputs, outputs = INPUTS_OUTPUTS[cell.task]
    return [inputs, *[cell.width] * (cell.depth - 2), outputs]


def say_seconds(seconds: float) -> str:
    """
    >>> say_seconds(200), say_seconds(7500), say_seconds(4.2)
    ('3 min 20 s', '2 h 05 min', '5 s')
    """
    whole = max(1, round(seconds + 0.49))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def say_bytes(count: float) -> str:
    """
    >>> say_bytes(912_345_678), say_bytes(2.5e9), say_bytes(100)
    ('912 MB', '2.5 GB', '1 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
