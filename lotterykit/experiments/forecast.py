"""`forecast`: how long a sweep will take and how much memory and disk, from a few measured steps a shape."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lotterykit.errors import ArgumentError
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.tasks import load_runner

INPUTS_OUTPUTS = {"circle": (2, 4), "relu": (1, 1), "helix": (1, 3)}
WORKER_BYTES = 330 << 20  # a process with torch loaded and nothing else
ROW_BYTES = 12_000  # of the store, a cell
START_SECONDS = 3.0  # until a spawned worker has loaded torch
MEASURED_STEPS = 30
TRUTH_DENSITY = 0.01  # stands for "truth" where only the cost matters


@dataclass(frozen=True)
class Cost:
    """What `calibrate` measured, in seconds: a training step of the whole batch; a cell beside training."""

    step: float
    cell: float


@dataclass(frozen=True)
class Forecast:
    """Time in seconds, memory (all processes together) and disk in bytes."""

    cells: int
    workers: int
    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers != 1)}"
        return (
            f"{self.cells} cells: about {say_seconds(self.seconds)} with {workers}, "
            f"about {say_bytes(self.memory)} of memory, {say_bytes(self.disk)} on disk"
        )


def steps(cell: CellSpec) -> int:
    """Optimizer steps of a cell; the last tenth of the samples is the test split."""
    epochs = cell.epochs + (cell.shots * cell.shot_epochs if cell.pipeline == "multi-shot" else 0)
    train = cell.samples - cell.samples // 10
    return epochs * -(-train // cell.batch_size)


def parameters(cell: CellSpec) -> int:
    """Weights and biases of the mother network."""
    widths = _widths(cell)
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def work(cell: CellSpec) -> float:
    """A cell's cost in arbitrary units: orders batches and weighs progress, no more."""
    scoring = cell.rounds * (cell.shots if cell.pipeline == "multi-shot" else 1)
    return (steps(cell) + scoring) * (parameters(cell) + 3e4)


def forecast(
    batches: Sequence[Sequence[CellSpec]], *, workers: int, calibrate: Callable[[Sequence[CellSpec]], Cost]
) -> Forecast:
    """The forecast for `batches` (`spec.group`); `calibrate` is asked once for each shape of batch."""
    if workers < 1:
        raise ArgumentError(f"workers must be at least 1, got {workers}")
    costs: dict[tuple, Cost] = {}
    seconds = []
    for batch in batches:
        first = batch[0]
        shape = (first.pipeline, first.task, first.depth, first.width, first.recipe_key(), first.rounds)
        if shape not in costs:
            costs[shape] = calibrate(batch)
        cost = costs[shape]
        scored = first.shots if first.pipeline == "multi-shot" else 1
        seconds.append(cost.step * steps(first) + cost.cell * scored * len(batch))
    cells = sum(len(batch) for batch in batches)
    workers = max(1, min(workers, len(batches)))
    total = START_SECONDS + max(sum(seconds) / workers, max(seconds)) if seconds else 0.0
    largest = max((batch_bytes(batch) for batch in batches), default=0)
    memory = (workers + 1) * WORKER_BYTES + workers * largest if cells else 0
    return Forecast(cells, workers, total, memory, cells * ROW_BYTES)


def batch_bytes(batch: Sequence[CellSpec]) -> int:
    """Memory of the arrays of a batch: data, weights with gradients and Adam state, activations."""
    first = batch[0]
    seeds = len({(cell.seed, cell.gain, cell.noise) for cell in batch})
    hidden = sum(_widths(first))
    data = 4 * first.samples * (_widths(first)[0] + 2 * _widths(first)[-1])
    network = 4 * parameters(first) * 12
    activations = 4 * 2 * hidden * max(first.batch_size, first.samples // 10)
    return seeds * data + len(batch) * (network + activations + data)


def calibrator(runner: str, threads: int) -> Callable[[Sequence[CellSpec]], Cost]:
    """A `calibrate` that times, in this process, a few training steps of a batch's shape, and `runner`
    without training."""

    def calibrate(batch: Sequence[CellSpec]) -> Cost:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return Cost(_step_seconds(batch), _cell_seconds(batch, runner))
        finally:
            torch.set_num_threads(before)

    return calibrate


def _step_seconds(batch: Sequence[CellSpec]) -> float:
    import torch

    from lotterykit.training.recipe import Recipe, Split
    from lotterykit.training.replicas import RunSpec, train_replicas

    widths = _widths(batch[0])
    generator = torch.Generator().manual_seed(0)

    def spec(cell: CellSpec, count: int) -> RunSpec:
        n = count * cell.batch_size
        x = torch.rand(n, widths[0], generator=generator)
        y = torch.rand(n, widths[-1], generator=generator)
        loss = "mse"
        if cell.task == "circle":
            y, loss = y.argmax(1), "cross_entropy"
        density = TRUTH_DENSITY if cell.density == "truth" else cell.density
        masks = {
            f"{2 * i}.weight": torch.rand(b, a, generator=generator) <= density
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        }
        recipe = Recipe(loss, epochs=1, batch_size=cell.batch_size, lr=cell.lr)
        return RunSpec(tuple(widths), Split(x, y, x[:1], y[:1]), recipe, masks=masks)

    train_replicas([spec(cell, 2) for cell in batch])
    specs = [spec(cell, MEASURED_STEPS) for cell in batch]
    began = time.perf_counter()
    train_replicas(specs)
    return (time.perf_counter() - began) / MEASURED_STEPS


def _cell_seconds(batch: Sequence[CellSpec], runner: str) -> float:
    """Planting, scoring and evaluating, a cell: the runner on one seed's cells with no training."""
    first = batch[0]
    cells: list[CellSpec] = []
    for cell in batch:
        if cell.seed == first.seed and cell.method not in {c.method for c in cells}:
            cells.append(CellSpec(**{**cell.model_dump(), "epochs": 0, **_no_shots(cell)}))
    began = time.perf_counter()
    load_runner(runner)(cells)
    return (time.perf_counter() - began) / len(cells)


def _no_shots(cell: CellSpec) -> dict[str, int]:
    return {"shots": 1, "shot_epochs": 0} if cell.pipeline == "multi-shot" else {}


def _widths(cell: CellSpec) -> list[int]:
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
