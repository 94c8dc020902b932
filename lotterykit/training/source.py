"""Where a training reads its batches: tensors in memory, or loaders of any kind that can be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.nn.seeds import derived_seed
from lotterykit.training.recipe import Recipe, Split, batch_order

EVALUATION_BATCH = 4096
Pair = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Loaders:
    """Batches `(x, y)` that can be read again and know their number, a DataLoader for instance.

    Each epoch reads `train` from its start, with torch's global generator seeded by the training's seed and
    the epoch, so that a DataLoader that shuffles does so alike in every run; where it has `set_epoch`, or its
    sampler has, that is called. `test` and `validation` are read in full.
    """

    train: Iterable[Pair]
    test: Iterable[Pair]
    validation: Iterable[Pair] | None = None

    def __post_init__(self) -> None:
        for name in ("train", "test", "validation"):
            loader = getattr(self, name)
            if loader is None and name == "validation":
                continue
            if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
                raise ArgumentError(
                    f"{name} must be batches that can be read again, such as a list or a DataLoader, "
                    f"got {type(loader).__name__}"
                )
            if not hasattr(loader, "__len__") or len(loader) == 0:
                raise ArgumentError(f"{name} must know its number of batches, at least one")


class Source(Protocol):
    """The batches of each epoch, and what is evaluated."""

    per_epoch: int
    cut_anywhere: bool  # whether an epoch may be taken up in its middle, bitwise

    def epoch(self, number: int, skip: int) -> Iterator[Pair]:
        """The batches of epoch `number` after the first `skip`."""

    def tests(self) -> list[Iterable[Pair]]:
        """The batches of the test data and, if there are any, of the validation data."""


class TensorSource:
    """Batches of a `Split`: the order depends on the seed and the epoch alone; the last may be smaller."""

    cut_anywhere = True

    def __init__(
        self, data: Split, recipe: Recipe, validation: Pair | None, seed: int, augment: Augment | None
    ) -> None:
        self.data, self.validation, self.size = data, validation, recipe.batch_size
        self.seed, self.augment = seed, augment
        self.per_epoch = -(-len(data.x_train) // recipe.batch_size)

    def epoch(self, number: int, skip: int) -> Iterator[Pair]:
        x, y = self.data.x_train, self.data.y_train
        batches = batch_order(len(x), self.seed, number).split(self.size)
        for batch in range(skip, len(batches)):
            images = x[batches[batch]]
            if self.augment is not None:
                images = self.augment(images, self.seed, number * self.per_epoch + batch)
            yield images, y[batches[batch]]

    def tests(self) -> list[Iterable[Pair]]:
        pairs = [(self.data.x_test, self.data.y_test)]
        pairs += [] if self.validation is None else [self.validation]
        return [zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True) for x, y in pairs]


class LoaderSource:
    """Batches of `Loaders`."""

    cut_anywhere = False

    def __init__(self, data: Loaders, seed: int, augment: Augment | None) -> None:
        self.data, self.seed, self.augment = data, seed, augment
        self.per_epoch = len(data.train)  # type: ignore[arg-type]

    def epoch(self, number: int, skip: int) -> Iterator[Pair]:
        train: Any = self.data.train
        for owner in (train, getattr(train, "sampler", None), getattr(train, "batch_sampler", None)):
            set_epoch = getattr(owner, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(number)
        torch.manual_seed(derived_seed(f"loader {self.seed} {number}"))
        count = 0
        for x, y in train:
            if count >= skip:
                step = number * self.per_epoch + count
                yield (x if self.augment is None else self.augment(x, self.seed, step)), y
            count += 1
        raise ArgumentError(f"train has {self.per_epoch} batches by its length, epoch {number} gave {count}")

    def tests(self) -> list[Iterable[Pair]]:
        return [self.data.test] if self.data.validation is None else [self.data.test, self.data.validation]


def source_of(
    data: Split | Loaders | tuple[Tensor, Tensor, Tensor, Tensor],
    recipe: Recipe,
    validation: Pair | None,
    seed: int,
    augment: Augment | None,
) -> Source:
    """The source of a training. Raises `ArgumentError` on data that do not fit."""
    if isinstance(data, Loaders):
        if validation is not None:
            raise ArgumentError("validation data of Loaders stand in Loaders.validation")
        return LoaderSource(data, seed, augment)
    check_validation(validation)
    return TensorSource(check_split(Split(*data)), recipe, validation, seed, augment)


def check_split(data: Split) -> Split:
    """`data`, or `ArgumentError` where a half is empty or inputs and targets differ in number."""
    for half, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if len(x) != len(y) or len(x) == 0:
            raise ArgumentError(f"{half} data needs as many inputs as targets, got {len(x)} and {len(y)}")
    return data


def check_validation(validation: Pair | None) -> None:
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


def check_steps(first: int, steps: int | None) -> None:
    """Raises `ArgumentError` unless these are the step to start from and the one to stop after."""
    if type(first) is not int or first < 0:
        raise ArgumentError(f"first must be an int of at least 0, got {first!r}")
    if steps is not None and (type(steps) is not int or steps < 0):
        raise ArgumentError(f"steps must be None or an int of at least 0, got {steps!r}")
