"""`Recipe`: how a network is trained; batch order, learning rate and metrics, shared by both trainers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.nn.seeds import derived_seed

LOSSES = ("cross_entropy", "mse")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine", "step")
UNITS = ("epochs", "steps")
MOST = 2**31 - 1  # of epochs, and of examples in a batch


class Split(NamedTuple):
    """A data set: x `[N, ...]`; y `[N]` class numbers (int64) or `[N, out]` values."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


class EarlyStop(NamedTuple):
    """The evaluation of least validation loss: the steps taken by then, the metrics of both splits."""

    step: int
    validation: dict[str, float]
    metrics: dict[str, float]


class Stretch(NamedTuple):
    """The steps [first, last) of an epoch, counted over the whole training, and what follows them."""

    epoch: int
    first: int
    last: int
    evaluates: bool
    ends_epoch: bool


@dataclass(frozen=True)
class Recipe:
    """Loss, optimizer and schedule of one training.

    Optimizers follow `torch.optim` to the letter (Adam with L2 `weight_decay` in the gradient; SGD with
    `momentum`, no dampening). Schedules: "constant"; "cosine" to 0 over all steps, a value a step;
    "step" times `gamma` at the start of each epoch in `milestones`, or at each step in them where
    `milestone_unit` is "steps". The first `warmup` steps of any schedule are scaled linearly from 0, as in
    The Lottery Ticket Hypothesis, sec. 4. The network is evaluated after every `evaluate_every` steps and
    after the last; None: after each epoch.
    """

    loss: str
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    evaluate_every: int | None = None
    milestone_unit: str = "epochs"
    warmup: int = 0

    def __post_init__(self) -> None:
        for kind, value, valid in (
            ("loss", self.loss, LOSSES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("milestone_unit", self.milestone_unit, UNITS),
        ):
            if value not in valid:
                raise unknown_name(kind, value, valid)
        if any(type(n) is not int for n in (self.epochs, self.batch_size)) or not (
            0 <= self.epochs <= MOST and 1 <= self.batch_size <= MOST
        ):
            raise ArgumentError(
                "epochs must be >= 0 and batch_size >= 1, ints below 2**31, "
                f"got {self.epochs!r} and {self.batch_size!r}"
            )
        every = self.evaluate_every
        if every is not None and (type(every) is not int or not 1 <= every <= MOST):
            raise ArgumentError(f"evaluate_every must be None or an int of at least 1, got {every!r}")
        if type(self.warmup) is not int or not 0 <= self.warmup <= MOST:
            raise ArgumentError(f"warmup must be an int of at least 0, in steps, got {self.warmup!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if not (self.lr >= 0 and self.weight_decay >= 0 and self.momentum >= 0 and self.eps > 0):
            raise ArgumentError(
                "lr, weight_decay and momentum must be >= 0 and eps > 0, got "
                f"{self.lr}, {self.weight_decay}, {self.momentum} and {self.eps}"
            )

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step `step`, counted from 0 over the whole training."""
        rate = self.lr
        if self.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch))) / 2
        elif self.schedule == "step":
            passed = step if self.milestone_unit == "steps" else step // steps_per_epoch
            rate *= self.gamma ** sum(passed >= milestone for milestone in self.milestones)
        return rate * step / self.warmup if step < self.warmup else rate

    def epoch_at(self, step: int, per_epoch: int) -> int:
        """The epoch, counted from 0, that the last of `step` steps was of."""
        return max(0, min((step - 1) // per_epoch, self.epochs - 1))

    def stretches(self, per_epoch: int, limit: int, first: int = 0) -> Iterator[Stretch]:
        """The steps [first, limit), cut at the ends of epochs of `per_epoch` steps and at evaluations."""
        step, every = first, self.evaluate_every
        while step < limit:
            epoch = step // per_epoch
            end = min((epoch + 1) * per_epoch, limit)
            last = end if every is None else min(end, (step // every + 1) * every)
            evaluates = last == limit or (last == end if every is None else last % every == 0)
            yield Stretch(epoch, step, last, evaluates, last == end)
            step = last


def early_stop(
    steps: Sequence[int], validation: Sequence[dict[str, float]], curve: Sequence[dict[str, float]]
) -> EarlyStop:
    """The first evaluation of least validation loss; a loss that is NaN is above all others.

    Raises `ArgumentError` where nothing was validated.
    """
    if not validation:
        raise ArgumentError("early stopping needs validation data and at least one evaluation")
    best = min(range(len(steps)), key=lambda i: (math.isnan(v := validation[i]["loss"]), v))
    return EarlyStop(steps[best], validation[best], curve[best])


def batch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order `[n]` in which epoch `epoch` visits the samples: depends on `seed` and `epoch` alone."""
    generator = torch.Generator().manual_seed(derived_seed(f"batch order {seed} {epoch}"))
    return torch.randperm(n, generator=generator)


def loss_value(output: Tensor, y: Tensor, loss: str) -> Tensor:
    """The mean loss of outputs `[N, out]`, a scalar; MSE is the mean over samples and outputs.

    Raises `ArgumentError` where MSE would broadcast, and for targets that are no classes of the outputs."""
    if loss == "mse" and output.shape != y.shape:
        raise ArgumentError(
            f"mse needs targets of the outputs' shape {list(output.shape)}, got {list(y.shape)}"
        )
    if loss == "cross_entropy":
        if not y.is_floating_point() and y.dtype not in (torch.int64, torch.uint8):
            raise ArgumentError(f"class numbers must be int64, got {y.dtype}")
        try:
            return torch.nn.functional.cross_entropy(output, y)
        except IndexError as error:  # asking beforehand would wait for the device in every step
            raise ArgumentError(
                f"class numbers must lie in [0, {output.shape[1]}), got {int(y.min())} to {int(y.max())}"
            ) from error
    return torch.nn.functional.mse_loss(output, y)


def metrics(output: Tensor, y: Tensor, loss: str) -> dict[str, float]:
    """{"loss", "accuracy"} of logits `[N, classes]`, or {"loss", "mse"} of values `[N, out]`."""
    value = float(loss_value(output, y, loss))
    if loss == "cross_entropy":
        return {"loss": value, "accuracy": float((output.argmax(1) == y).double().mean())}
    return {"loss": value, "mse": value}


def fitted_scale(output: Tensor, y: Tensor) -> float:
    """The positive factor s that minimises ||s * output - y||^2, 0 where no positive one helps (methods:
    a strong regression ticket is right up to one scale). Fit it on the training split only."""
    out, target = output.double().flatten(), y.double().flatten()
    square = float(out @ out)
    return max(0.0, float(out @ target) / square) if square > 0 else 0.0
