"""Plant 'n' Seek (P0): hide a ticket, prune with a method that does not know it, compare with the truth.

single-shot (Fig. 3): plant, score once, prune, evaluate, train, evaluate.
multi-shot (Fig. 4): rounds of train, prune, reset; then as above.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotterykit.data.planted import TASKS
from lotterykit.errors import ArgumentError
from lotterykit.experiments.row import finite, result_row
from lotterykit.experiments.spec import CellSpec, derive_seed
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp
from lotterykit.planting.plant import Planted, plant
from lotterykit.planting.targets import TARGETS
from lotterykit.pruning.prune import Pruner, Round
from lotterykit.pruning.schedules import density_after
from lotterykit.pruning.scores import SCORES
from lotterykit.training.batched import one_thread
from lotterykit.training.recipe import Recipe, Split, fitted_scale, loss_value, metrics
from lotterykit.training.replicas import RunResult, RunSpec, train_replicas
from lotterykit.training.single import predict

SCORED_PER_OUTPUT = 10  # samples scored a class (or output), as P0's code: prune-dataset-ratio 10


@dataclass
class Hidden:
    """A planted mother with its data: what the `cells` of one seed and setting in a batch share."""

    split: Split
    planted: Planted
    seconds: float
    cells: int = 0


@dataclass
class Search:
    """One cell on its way: the network it prunes, the masks so far, what each round left, and the
    optimizer's state where training goes on."""

    cell: CellSpec
    hidden: Hidden
    network: nn.Module
    masks: Masks
    rounds: list[Round]
    seconds: float = 0.0
    train_seconds: float = 0.0
    samples: int = 0
    optimizer: dict[str, Tensor] | None = None


def run_batch(cells: list[CellSpec], *, progress: Callable[[float], None] | None = None) -> list[dict]:
    """A result row per cell, in order; `progress` is told the finished share of the batch, in [0, 1].

    The cells must share pipeline, task, depth, width and recipe (`spec.group` sees to it): they train
    side by side. Raises `ArgumentError` otherwise.
    """
    if not cells:
        return []
    shapes = {(c.pipeline, c.task, c.depth, c.width, c.recipe_key()) for c in cells}
    if len(shapes) > 1:
        raise ArgumentError(f"the cells of a batch must share shape and recipe, got {len(shapes)} kinds")
    with one_thread():  # rows must not depend on how many threads a worker has
        return _run(cells, _counter(cells, progress))


def _run(cells: list[CellSpec], done: Callable[[int], None]) -> list[dict]:
    planted: dict[object, Hidden] = {}
    searches = []
    for cell in cells:
        key = (cell.seed, cell.gain, cell.matching, cell.scaling, cell.init, cell.noise, cell.samples)
        if key not in planted:
            planted[key] = hide(cell)
        hidden = planted[key]
        hidden.cells += 1
        network = copy.deepcopy(hidden.planted.network)
        searches.append(Search(cell, hidden, network, Masks.from_model(network), []))
    looking = [search for search in searches if _shots(search.cell)]
    if looking:
        multi_shot(looking, done)
    for search in searches:
        if not _shots(search.cell):
            prune_once(search, _density(search))
    before = [_evaluate(s.network, s.masks, s.hidden) for s in searches]
    start = [_state(s.network) for s in searches]
    results = _train(searches, cells[0].epochs, "final", done)
    after = [_evaluate_result(r, s) for r, s in zip(results, searches, strict=True)]
    return [
        result_row(
            s.cell,
            s.hidden.planted,
            s.masks,
            metrics={"before": b, "after": a},
            rounds=s.rounds,
            samples=s.samples,
            weights=(w, r.weights),
            curve=r.curve,
            times={"plant": s.hidden.seconds / s.hidden.cells, "score": s.seconds, "train": s.train_seconds},
        )
        for s, b, a, w, r in zip(searches, before, after, start, results, strict=True)
    ]


def hide(cell: CellSpec) -> Hidden:
    """Data, mother and planted ticket of a cell: functions of its seed and setting, not of the method."""
    began = time.perf_counter()
    task = TASKS[cell.task]
    split = Split(*task.sample(cell.samples, cell.noise, derive_seed(cell.seed, "data")))
    widths = [task.inputs, *[cell.width] * (cell.depth - 2), task.outputs]
    mother = mlp(widths, init=cell.init, seed=derive_seed(cell.seed, "init"))
    planted = plant(
        TARGETS[cell.task](cell.depth), mother, matching=cell.matching, scaling=cell.scaling,
        gain=cell.gain, seed=derive_seed(cell.seed, "plant"),
    )  # fmt: skip
    return Hidden(split, planted, time.perf_counter() - began)


def prune_once(search: Search, density: float) -> None:
    """Prune `search.network` to `density` by its method, in the cell's scoring rounds."""
    cell, began = search.cell, time.perf_counter()
    if cell.method == "oracle":
        search.masks = search.hidden.planted.ticket
    else:
        batch = _scored_batch(cell, search.hidden.split)
        pruner = Pruner(
            search.network, cell.method, density=density, rounds=cell.rounds, scope=cell.scope, data=[batch],
            loss_fn=_loss_fn(cell), invert=cell.invert, seed=derive_seed(cell.seed, f"prune {density!r}"),
        )  # fmt: skip
        for _ in range(cell.rounds):
            search.masks = pruner.step()
        search.samples = len(batch[0]) if SCORES[cell.method].reads_data else 0
        search.rounds += pruner.history
    search.seconds += time.perf_counter() - began


def multi_shot(searches: list[Search], done: Callable[[int], None]) -> None:
    """Rounds of: train `shot_epochs`, prune to rho^(r / shots), reset weights and optimizer.

    reset "init" resets after every round, "never" after none (the optimizer goes on as well),
    "not-last" after all but the last (P0 Fig. 7).
    """
    cell = searches[0].cell
    init = [_state(search.network) for search in searches]
    for number in range(1, cell.shots + 1):
        trained = _train(searches, cell.shot_epochs, f"shot {number}", done)
        resets = cell.reset == "init" or (cell.reset == "not-last" and number < cell.shots)
        for search, weights, result in zip(searches, init, trained, strict=True):
            _load(search.network, result.weights)
            prune_once(
                search, density_after("exponential", end=_density(search), round=number, rounds=cell.shots)
            )
            search.optimizer = None if resets else result.optimizer
            if resets:
                _load(search.network, weights)


def _train(
    searches: list[Search],
    epochs: int,
    part: str,
    done: Callable[[int], None],
) -> list[RunResult]:
    specs = []
    for search in searches:
        cell = search.cell
        recipe = Recipe(_loss(cell), epochs=epochs, batch_size=cell.batch_size, lr=cell.lr)
        weights = _state(search.network)
        layers = [
            next(iter(weights.values())).shape[1],
            *(w.shape[0] for w in weights.values() if w.dim() == 2),
        ]
        specs.append(
            RunSpec(
                tuple(layers),
                search.hidden.split,
                recipe,
                weights=weights,
                masks=search.masks,
                seed=derive_seed(cell.seed, f"order {part}"),
                optimizer=search.optimizer,
            )
        )
    began = time.perf_counter()
    results = train_replicas(specs, progress=done)
    share = (time.perf_counter() - began) / max(1, len(searches))
    for search in searches:
        search.train_seconds += share
    return results


def _evaluate(network: nn.Module, masks: Masks, hidden: Hidden) -> dict[str, float | None]:
    """The metrics of the masked network on the test split; regression also up to scale (methods 4): one
    positive factor, fitted on the training split, and the planted `output_scale`."""
    ticket = masks.apply_(copy.deepcopy(network))
    split = hidden.split
    output = predict(ticket, split.x_test)
    if not split.y_test.is_floating_point():
        return finite(metrics(output, split.y_test, "cross_entropy"))
    found = metrics(output, split.y_test, "mse")
    scale = fitted_scale(predict(ticket, split.x_train), split.y_train)
    planted = float(loss_value(output * hidden.planted.output_scale, split.y_test, "mse"))
    scaled = float(loss_value(output * scale, split.y_test, "mse"))
    return finite({**found, "mse_scaled": scaled, "scale": scale, "mse_planted_scale": planted})


def _evaluate_result(result: RunResult, search: Search) -> dict[str, float | None]:
    network = copy.deepcopy(search.network)
    _load(network, result.weights)
    return _evaluate(network, search.masks, search.hidden)


def _shots(cell: CellSpec) -> int:
    """Rounds of training and pruning; the oracle's ticket is known and needs none."""
    return cell.shots if cell.pipeline == "multi-shot" and cell.method != "oracle" else 0


def _density(search: Search) -> float:
    density = search.cell.density
    return search.hidden.planted.ticket.density() if density == "truth" else float(density)


def _loss(cell: CellSpec) -> str:
    return "cross_entropy" if TASKS[cell.task].kind == "classification" else "mse"


def _loss_fn(cell: CellSpec) -> Callable[[Tensor, Tensor], Tensor]:
    loss = _loss(cell)
    return lambda output, y: loss_value(output, y, loss)


def _scored_batch(cell: CellSpec, split: Split) -> tuple[Tensor, Tensor]:
    """10 random training samples a class, or 10 times the outputs, in one batch (P0's baseline)."""
    generator = torch.Generator().manual_seed(derive_seed(cell.seed, "scored batch"))
    order = torch.randperm(len(split.x_train), generator=generator)
    if split.y_train.is_floating_point():
        chosen = order[: SCORED_PER_OUTPUT * split.y_train.shape[1]]
    else:
        labels = split.y_train[order]
        chosen = torch.cat([order[labels == c][:SCORED_PER_OUTPUT] for c in labels.unique()])
    return split.x_train[chosen], split.y_train[chosen]


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def _load(network: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])


def _counter(cells: list[CellSpec], progress: Callable[[float], None] | None) -> Callable[[int], None]:
    """Turns numbers of finished replica-epochs into the finished share of the batch."""
    total = sum(c.epochs + _shots(c) * c.shot_epochs for c in cells)
    finished = 0

    def done(epochs: int) -> None:
        nonlocal finished
        finished += epochs
        if progress is not None and total:
            progress(finished / total)

    return done
