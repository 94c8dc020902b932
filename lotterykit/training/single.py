"""Train one network, any torch module: the plain loop that `replicas.py` must agree with step for step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.nn.evaluation import evaluating
from lotterykit.training.optimizer import make_optimizer, mask_optimizer_
from lotterykit.training.recipe import Recipe, Split, batch_order, loss_value, metrics

EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class TrainResult:
    """`metrics` of the test split after training; `curve`: those after each epoch."""

    metrics: dict[str, float]
    curve: list[dict[str, float]]


def train(
    model: nn.Module,
    data: Split | tuple[Tensor, Tensor, Tensor, Tensor],
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    steps: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place; pruned weights stay exactly zero.

    `masks` defaults to those the model carries. `seed` fixes the order of the batches; the last batch of
    an epoch may be smaller. `steps` stops early; `on_step` is called after each step with its number.
    Raises `ArgumentError` on data of unequal length.
    """
    data = check_split(Split(*data))
    check_seed(seed)
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], recipe)
    mask_optimizer_(optimizer, model, masks)
    n, step, curve = len(data.x_train), 0, []
    per_epoch = -(-n // recipe.batch_size)
    limit = recipe.epochs * per_epoch if steps is None else steps
    for epoch in range(min(recipe.epochs, -(-limit // per_epoch))):
        model.train()
        for indices in batch_order(n, seed, epoch).split(recipe.batch_size):
            if step >= limit:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(step, per_epoch)
            optimizer.zero_grad(set_to_none=True)
            loss_value(model(data.x_train[indices]), data.y_train[indices], recipe.loss).backward()
            optimizer.step()
            step += 1
            if on_step is not None:
                on_step(step)
        curve.append(evaluate(model, data, recipe.loss))
    return TrainResult(curve[-1] if curve else evaluate(model, data, recipe.loss), curve)


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
