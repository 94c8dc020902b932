"""Train one network, any torch module: the plain loop that `replicas.py` must agree with step for step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.nn.evaluation import evaluating
from lotterykit.nn.seeds import derived_seed
from lotterykit.training.optimizer import make_optimizer, mask_optimizer_
from lotterykit.training.recipe import (
    EarlyStop,
    Recipe,
    Split,
    early_stop,
    loss_value,
    metrics,
)
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.scored_module import ScoredTraining
from lotterykit.training.source import Augment, Loaders, Pair, check_steps, source_of


@dataclass(frozen=True)
class TrainResult:
    """`metrics` of the test split after training; `curve`: those of each evaluation, after `steps` steps;
    `validation`: the validation data's beside them, empty without such data; `optimizer`: its state as
    "parameter/name" -> tensor, for `train(optimizer=...)`. Score training leaves the trained `scores` and the
    `masks` found, by the names of the weights, on the CPU; its `metrics` are those under these masks, also
    where it stopped before Gem-Miner's last freezing, in the curve those under the masks in force then."""

    metrics: dict[str, float]
    curve: list[dict[str, float]]
    steps: list[int] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def early_stop(self) -> EarlyStop:
        """The evaluation of least validation loss; raises `ArgumentError` without validation data."""
        return early_stop(self.steps, self.validation, self.curve)


def train(
    model: nn.Module,
    data: Split | Loaders | tuple[Tensor, Tensor, Tensor, Tensor],
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    validation: Pair | None = None,
    seed: int = 0,
    first: int = 0,
    steps: int | None = None,
    optimizer: Mapping[str, Tensor] | None = None,
    augment: Augment | None = None,
    scores: ScoreTraining | None = None,
    unscored: Collection[str] = (),
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place; pruned weights stay exactly zero.

    `data`: tensors, or `Loaders` for batches of any kind, whose number is an epoch and whose size is theirs.
    `masks` defaults to those the model carries. `validation`: x and y that are evaluated beside the test
    split, for `TrainResult.early_stop`. `seed` fixes the order of the batches and what a step draws from
    torch's generators (dropout), which are left as they were; the last batch of an epoch may be smaller.
    `first`: the schedule and the batches go on from this step, as after rewinding to it; `steps`: stops after
    that step. A training cut in two, `optimizer` handed on, ends bitwise like one in a piece. `augment(x,
    seed, step)` changes the images of a step, as `lk.data.flip_and_crop` does. `on_step` is called after
    each step with its number.
    `scores`: not the weights are trained but scores that choose among them, as `ScoredTraining` says, of all
    layers but those named in `unscored`; the model ends with masked layers that hold the mask found. To go on
    from `first`, give the result's scores as `start` and the model the masks it had before, for Gem-Miner
    with a density those of the result, which are what it has not frozen; what is stopped by an error is left
    with its scored layers.
    Raises `ArgumentError` on data of unequal length and on an optimizer's state of another network.
    """
    check_seed(seed)
    check_steps(first, steps)
    source = source_of(data, recipe, validation, seed, augment)
    run: ScoredTraining | _WeightTraining = _WeightTraining()
    if scores is not None:
        run = ScoredTraining(model, scores, recipe.epochs, seed=seed, unscored=unscored, masks=masks)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    torch_optimizer = make_optimizer([p for _, p in trained], recipe)
    if optimizer is not None:
        _continue(torch_optimizer, trained, optimizer)
    mask_optimizer_(torch_optimizer, model, masks)
    run.attach_(torch_optimizer)
    total = recipe.epochs * source.per_epoch
    limit = max(first, total if steps is None else min(steps, total))
    run.begin(recipe.epoch_at(first + (limit > first), source.per_epoch))
    result = TrainResult({}, [])
    place = next(model.parameters()).device
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        torch.manual_seed(derived_seed(f"start {seed} {first}"))  # for loaders read before the first step
        batches = source.epoch(first // source.per_epoch, first % source.per_epoch)
        for stretch in recipe.stretches(source.per_epoch, limit, first):
            model.train()
            if stretch.first % source.per_epoch == 0:
                batches = source.epoch(stretch.epoch, 0)
                run.begin(stretch.epoch)
            for step in range(stretch.first, stretch.last):
                for group in torch_optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(step, source.per_epoch)
                x, y = next(batches)
                torch.manual_seed(derived_seed(f"step {seed} {step}"))
                _step(model, torch_optimizer, (x.to(place), y.to(place)), recipe.loss, run)
                if on_step is not None:
                    on_step(step + 1)
            if stretch.last == total:
                run.finish()
            if stretch.evaluates:
                with run.ranked():
                    found = [_evaluated(model, test, recipe.loss) for test in source.tests()]
                result.steps.append(stretch.last)
                result.curve.append(found[0])
                result.validation.extend(found[1:])
        found_masks = {name: mask.cpu() for name, mask in run.finish().items()}
        found_scores = {name: value.cpu() for name, value in run.scores.items()}
        if result.curve and (scores is None or limit == total):
            last = result.curve[-1]
        else:
            last = _evaluated(model, source.tests()[0], recipe.loss)
    state = _state(torch_optimizer, trained)
    return replace(result, metrics=last, optimizer=state, scores=found_scores, masks=found_masks)


def _step(
    model: nn.Module, optimizer: Optimizer, batch: Pair, loss: str, run: ScoredTraining | _WeightTraining
) -> None:
    """One step of the optimizer on a batch."""
    x, y = batch
    optimizer.zero_grad(set_to_none=True)
    with run.ranked():
        loss_value(model(x), y, loss).backward()
    optimizer.step()


class _WeightTraining:
    """What weights need where scores need something (`ScoredTraining`): nothing."""

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}

    def attach_(self, optimizer: Optimizer) -> Optimizer:
        return optimizer

    def begin(self, epoch: int) -> None:
        return

    def ranked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def finish(self) -> Mapping[str, Tensor]:
        return {}


def _evaluated(model: nn.Module, batches: Iterable[Pair], loss: str) -> dict[str, float]:
    """The metrics of all batches together, in evaluation mode, without gradients."""
    place = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        pairs = [(model(x.to(place)), y.to(place)) for x, y in batches]
    return metrics(torch.cat([o for o, _ in pairs]), torch.cat([y for _, y in pairs]), loss)


def _state(optimizer: Optimizer, trained: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by parameter and name."""
    return {
        f"{name}/{key}": value.detach().cpu().clone()
        for name, parameter in trained
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _continue(
    optimizer: Optimizer, trained: list[tuple[str, nn.Parameter]], state: Mapping[str, Tensor]
) -> None:
    """Take up what `_state` gave."""
    parameters = dict(trained)
    for label, value in state.items():
        name, _, key = label.rpartition("/")
        if name not in parameters or (key != "step" and value.shape != parameters[name].shape):
            raise ArgumentError(f"the optimizer's state {label!r} {list(value.shape)} is of another network")
        place = parameters[name].device
        optimizer.state[parameters[name]][key] = value.detach().clone().to(place)
