"""Plant 'n' Seek (P0): hide a ticket, prune with a method that does not know it, compare with the truth.

single-shot (Fig. 3): plant, score once, prune, evaluate, train, evaluate.
multi-shot (Fig. 4): rounds of train, prune, reset; then as above.
edge-popup (Fig. 4): plant, train scores while the weights are frozen, keep the highest; then as above.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotterykit.data.planted import TASKS
from lotterykit.errors import ArgumentError
from lotterykit.experiments.ladder import RUNGS
from lotterykit.experiments.mothers import DataKey, Hidden, Mothers, data_key, draw_data
from lotterykit.experiments.row import finite, result_row
from lotterykit.experiments.spec import EDGE_POPUP, LADDER, CellSpec, derive_seed
from lotterykit.experiments.tasks import DataSets
from lotterykit.experiments.together import Evaluator, train_once
from lotterykit.mask import Masks
from lotterykit.nn.models import chain
from lotterykit.pruning.prune import Pruner, Round
from lotterykit.pruning.schedules import density_after
from lotterykit.pruning.scores import SCORES
from lotterykit.training.batched import one_thread
from lotterykit.training.recipe import Recipe, Split, fitted_scale, loss_value, metrics
from lotterykit.training.replicas import RunResult, RunSpec
from lotterykit.training.scored import ScoreTraining

SCORED_PER_OUTPUT = 10  # samples scored a class (or output), as P0's code: prune-dataset-ratio 10
Weights = dict[str, Tensor]


@dataclass
class Search:
    """One cell on its way: the weights it has, the masks so far, what each round left, and the optimizer's
    state where training goes on. `network` is what scores are computed on, made when first needed.
    `device` is where it trains. `curve` and `diverged` are of score training."""

    cell: CellSpec
    hidden: Hidden
    weights: Weights
    masks: Masks
    rounds: list[Round]
    device: str
    network: nn.Module | None = None
    seconds: float = 0.0
    train_seconds: float = 0.0
    samples: int = 0
    optimizer: Weights | None = None
    curve: list[dict[str, float]] | None = None
    diverged: bool = False


def run_batch(
    cells: list[CellSpec],
    *,
    progress: Callable[[float], None] | None = None,
    device: str = "cpu",
    data: Mapping[DataKey, Split] | None = None,
) -> list[dict]:
    """A result row per cell, in order; `progress` is told the finished share of the batch, in [0, 1];
    networks train on `device`; `data` holds data sets that need not be drawn.

    The cells must share pipeline, task, depth, width and recipe (`spec.group` sees to it): they train
    side by side. Raises `ArgumentError` otherwise.
    """
    if not cells:
        return []
    shapes = {(c.pipeline, c.task, c.depth, c.width, c.recipe_key()) for c in cells}
    if len(shapes) > 1:
        raise ArgumentError(f"the cells of a batch must share shape and recipe, got {len(shapes)} kinds")
    with one_thread():  # rows must not depend on how many threads a worker has
        return _run(cells, _counter(cells, progress), device, Mothers(data))


def _run(cells: list[CellSpec], done: Callable[[int], None], device: str, mothers: Mothers) -> list[dict]:
    evaluator = Evaluator()
    searches = []
    for cell in cells:
        hidden = mothers.hide(cell)
        dense = {n: torch.ones_like(w, dtype=torch.bool) for n, w in hidden.weights.items() if w.dim() == 2}
        searches.append(Search(cell, hidden, hidden.weights, Masks(dense), [], device))
    looking = [search for search in searches if _shots(search.cell)]
    if looking:
        multi_shot(looking, done)
    popping = [search for search in searches if search.cell.method in EDGE_POPUP]
    if popping:
        edge_popup(popping, done)
    for search in searches:
        if not _shots(search.cell) and search.cell.method not in EDGE_POPUP:
            prune_once(search, _density(search))
    before = [_evaluate(s, s.weights, evaluator) for s in searches]
    results = _train(searches, cells[0].epochs, "final", done)
    after = [_evaluate(s, r.weights, evaluator) for r, s in zip(results, searches, strict=True)]
    return [
        result_row(
            s.cell,
            s.hidden,
            s.masks,
            metrics={"before": b, "after": a},
            rounds=s.rounds,
            samples=s.samples,
            weights=(s.weights, r.weights),
            curve=r.curve,
            search_curve=s.curve,
            diverged=s.diverged,
            device=device,
            times={"plant": s.hidden.seconds / s.hidden.cells, "score": s.seconds, "train": s.train_seconds},
        )
        for s, b, a, r in zip(searches, before, after, results, strict=True)
    ]


def hide(cell: CellSpec) -> Hidden:
    """Data, mother and planted ticket of a cell: functions of its seed and setting, not of the method."""
    return Mothers().hide(cell)


def prune_once(search: Search, density: float) -> None:
    """Prune to `density` by the cell's method, in the cell's scoring rounds."""
    cell, began = search.cell, time.perf_counter()
    if cell.method == "oracle":
        search.masks = search.hidden.planted.ticket
    elif cell.method in LADDER:
        generator = torch.Generator().manual_seed(derive_seed(cell.seed, f"ladder {cell.method}"))
        search.masks = RUNGS[cell.method](search.hidden.truth, generator)
    else:
        _prune_by_scores(search, density)
    search.seconds += time.perf_counter() - began


def _prune_by_scores(search: Search, density: float) -> None:
    cell = search.cell
    batch = _scored_batch(cell, search.hidden.split)
    search.samples = len(batch[0]) if SCORES[cell.method].reads_data else 0
    if density == 1.0 and search.masks.density() == 1.0:  # whatever the scores are
        search.rounds += [Round(number, 1.0, (), False) for number in range(1, cell.rounds + 1)]
        return
    if search.network is None:
        search.network = _network(search.weights)
    inner = {"lr": cell.lr} if "lr" in SCORES[cell.method].options else None
    pruner = Pruner(
        search.network, cell.method, density=density, rounds=cell.rounds, scope=cell.scope, data=[batch],
        loss_fn=_loss_fn(cell), options=inner, invert=cell.invert,
        seed=derive_seed(cell.seed, f"prune {density!r}"),
    )  # fmt: skip
    search.masks = pruner.run()
    search.rounds += pruner.history


def multi_shot(searches: list[Search], done: Callable[[int], None]) -> None:
    """Rounds of: train `shot_epochs`, prune to rho^(r / shots), reset weights and optimizer.

    reset "init" resets after every round, "never" after none (the optimizer goes on as well),
    "not-last" after all but the last (P0 Fig. 7).
    """
    cell = searches[0].cell
    for number in range(1, cell.shots + 1):
        trained = _train(searches, cell.shot_epochs, f"shot {number}", done)
        resets = cell.reset == "init" or (cell.reset == "not-last" and number < cell.shots)
        for search, result in zip(searches, trained, strict=True):
            search.weights = result.weights
            if search.network is not None:
                _load(search.network, result.weights)
            prune_once(
                search, density_after("exponential", end=_density(search), round=number, rounds=cell.shots)
            )
            search.optimizer = None if resets else result.optimizer
            if resets:
                search.weights = search.hidden.weights


def edge_popup(searches: list[Search], done: Callable[[int], None]) -> None:
    """Train scores for `score_epochs` with the weights frozen (Ramanujan et al. 2020, as in P0 B.1: SGD,
    momentum .9, weight decay 5e-4, cosine); the ticket is what the scores keep in the end."""
    specs = []
    for search in searches:
        cell = search.cell
        recipe = Recipe(
            _loss(cell), epochs=cell.score_epochs, batch_size=cell.batch_size, optimizer="sgd",
            lr=cell.score_lr, momentum=0.9, weight_decay=5e-4, schedule="cosine",
        )  # fmt: skip
        training = ScoreTraining(
            density=_density(search),
            scope="global" if cell.method == "edge-popup-global" else "layer",
            anneal=cell.method == "edge-popup-annealed",
        )
        seed = derive_seed(cell.seed, "scores")
        hidden = search.hidden
        specs.append(
            RunSpec(hidden.layers, hidden.split, recipe, weights=search.weights, seed=seed, scores=training)
        )
    began = time.perf_counter()
    results = train_once(specs, done, searches[0].device)
    share = (time.perf_counter() - began) / len(searches)
    for search, result in zip(searches, results, strict=True):
        search.masks = Masks({name: result.masks[name] for name in search.masks})
        search.curve = result.curve
        search.diverged = not all(bool(scores.isfinite().all()) for scores in result.scores.values())
        search.samples = len(search.hidden.split.x_train)
        search.seconds += share


def _train(
    searches: list[Search],
    epochs: int,
    part: str,
    done: Callable[[int], None],
) -> list[RunResult]:
    specs = []
    for search in searches:
        cell = search.cell
        specs.append(
            RunSpec(
                search.hidden.layers,
                search.hidden.split,
                Recipe(_loss(cell), epochs=epochs, batch_size=cell.batch_size, lr=cell.lr),
                weights=search.weights,
                masks=search.masks,
                seed=derive_seed(cell.seed, f"order {part}"),
                optimizer=search.optimizer,
            )
        )
    began = time.perf_counter()
    results = train_once(specs, done, searches[0].device)
    share = (time.perf_counter() - began) / max(1, len(searches))
    for search in searches:
        search.train_seconds += share
    return results


def _evaluate(search: Search, weights: Weights, evaluator: Evaluator) -> dict[str, float | None]:
    """The metrics of the masked network on the test split; regression also up to scale (methods 4): one
    positive factor, fitted on the training split, and the planted `output_scale`."""
    split, truth = search.hidden.split, search.hidden.planted
    output = evaluator.outputs(weights, search.masks, split, "x_test")
    if not split.y_test.is_floating_point():
        return finite(metrics(output, split.y_test, "cross_entropy"))
    found = metrics(output, split.y_test, "mse")
    scale = fitted_scale(evaluator.outputs(weights, search.masks, split, "x_train"), split.y_train)
    planted = float(loss_value(output * truth.output_scale, split.y_test, "mse"))
    scaled = float(loss_value(output * scale, split.y_test, "mse"))
    return finite({**found, "mse_scaled": scaled, "scale": scale, "mse_planted_scale": planted})


def _shots(cell: CellSpec) -> int:
    """Rounds of training and pruning; a ticket that is known needs none."""
    return cell.shots if cell.pipeline == "multi-shot" and cell.method not in ("oracle", *LADDER) else 0


def _density(search: Search) -> float:
    density = search.cell.density
    return search.hidden.density if density == "truth" else float(density)


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


def _network(weights: Weights) -> nn.Module:
    return chain([w for w in weights.values() if w.dim() == 2], [b for b in weights.values() if b.dim() == 1])


def _load(network: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])


def _counter(cells: list[CellSpec], progress: Callable[[float], None] | None) -> Callable[[int], None]:
    """Turns numbers of finished replica-epochs into the finished share of the batch."""
    total = sum(c.epochs + _shots(c) * c.shot_epochs for c in cells)
    total += sum(c.score_epochs for c in cells if c.method in EDGE_POPUP)
    finished = 0

    def done(epochs: int) -> None:
        nonlocal finished
        finished += epochs
        if progress is not None and total:
            progress(finished / total)

    return done


DATA_SETS = {"run_batch": DataSets(data_key, draw_data)}
