"""Train one network, any torch module: the plain loop that `replicas.py` must agree with step for step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.nn.evaluation import evaluating
from lotterykit.training.optimizer import make_optimizer, mask_optimizer_
from lotterykit.training.recipe import (
    EarlyStop,
    Recipe,
    Split,
    batch_order,
    early_stop,
    loss_value,
    metrics,
)

EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class TrainResult:
    """`metrics` of the test split after training; `curve`: those of each evaluation, after `steps` steps;
    `validation`: the validation data's beside them, empty without such data."""

    metrics: dict[str, float]
    curve: list[dict[str, float]]
    steps: list[int] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)

    def early_stop(self) -> EarlyStop:
        """The evaluation of least validation loss; raises `ArgumentError` without validation data."""
        return early_stop(self.steps, self.validation, self.curve)


def train(
    model: nn.Module,
    data: Split | tuple[Tensor, Tensor, Tensor, Tensor],
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    steps: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place; pruned weights stay exactly zero.

    `masks` defaults to those the model carries. `validation`: x and y that are evaluated beside the test
    split, for `TrainResult.early_stop`. `seed` fixes the order of the batches; the last batch of
    an epoch may be smaller. `steps` stops early; `on_step` is called after each step with its number.
    Raises `ArgumentError` on data of unequal length.
    """
    data = check_split(Split(*data))
    check_validation(validation)
    check_seed(seed)
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], recipe)
    mask_optimizer_(optimizer, model, masks)
    n, size = len(data.x_train), recipe.batch_size
    per_epoch = -(-n // size)
    total = recipe.epochs * per_epoch
    result = TrainResult({}, [])
    for stretch in recipe.stretches(per_epoch, total if steps is None else min(steps, total)):
        model.train()
        batches = batch_order(n, seed, stretch.epoch).split(size)
        for step in range(stretch.first, stretch.last):
            indices = batches[step % per_epoch]
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(step, per_epoch)
            optimizer.zero_grad(set_to_none=True)
            loss_value(model(data.x_train[indices]), data.y_train[indices], recipe.loss).backward()
            optimizer.step()
            if on_step is not None:
                on_step(step + 1)
        if stretch.evaluates:
            result.steps.append(stretch.last)
            result.curve.append(evaluate(model, data, recipe.loss))
            if validation is not None:
                result.validation.append(metrics(predict(model, validation[0]), validation[1], recipe.loss))
    last = result.curve[-1] if result.curve else evaluate(model, data, recipe.loss)
    return replace(result, metrics=last)


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs `[N, ...]` of `model` in evaluation mode, without gradients, in batches."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(part) for part in x.split(EVALUATION_BATCH)])


def evaluate(model: nn.Module, data: Split, loss: str) -> dict[str, float]:
    """The metrics of the test split."""
    return metrics(predict(model, data.x_test), data.y_test, loss)


def check_split(data: Split) -> Split:
    """`data`, or `ArgumentError` where a half is empty or inputs and targets differ in number."""
    for half, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if len(x) != len(y) or len(x) == 0:
            raise ArgumentError(f"{half} data needs as many inputs as targets, got {len(x)} and {len(y)}")
    return data


def check_validation(validation: tuple[Tensor, Tensor] | None) -> None:
    """Raises `ArgumentError` unless `validation` is None or as many inputs as targets, at least one."""
    if validation is None:
        return
    if (
        not isinstance(validation, tuple | list)
        or len(validation) != 2
        or not all(isinstance(part, Tensor) for part in validation)
    ):
        raise ArgumentError(f"validation must be None or two tensors, x and y, got {validation!r:.80}")
    x, y = validation
    if len(x) != len(y) or len(x) == 0:
        raise ArgumentError(f"validation data needs as many inputs as targets, got {len(x)} and {len(y)}")
