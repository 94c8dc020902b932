"""CIFAR-10 and CIFAR-100 in both published layouts (https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lotterykit.data.files import checked_labels, file_in, opened, read_at_most
from lotterykit.data.pickled import array, read_batch
from lotterykit.data.planted import Split
from lotterykit.errors import ArgumentError

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
# bytes an image in a pickle: Python 3's protocols 1 and 2 write pixels as UTF-8; then its label and file name
PICKLED_MOST = 2 * PIXELS + 256


@dataclass(frozen=True)
class Batches:
    """How a CIFAR is cut into files: their names (train, then test), `most` images a train and a test file,
    `label_bytes` before a binary image (the last is the label), the key of the labels in a pickle."""

    train: tuple[str, ...]
    test: str
    most: tuple[int, int]
    label_bytes: int
    labels: str
    classes: int


CIFAR10 = Batches(tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", (10_000,) * 2, 1, "labels", 10)
CIFAR100 = Batches(("train",), "test", (50_000, 10_000), 2, "fine_labels", 100)


def read_binary(path: Path, kind: Batches, most: int) -> tuple[Tensor, Tensor]:
    """A file of the binary layout: x uint8 `[N, 3, 32, 32]`, y int64 `[N]`, N in 1..most.

    Raises `ArgumentError` for a length that is no whole number of images and for labels out of range."""
    record = kind.label_bytes + PIXELS
    with opened(path) as stream:
        data = read_at_most(stream, most * record + 1)
    if not data or len(data) % record or len(data) > most * record:
        found = f"more than {most * record}" if len(data) > most * record else str(len(data))
        raise ArgumentError(
            f"{path}: found {found} bytes (cut short?), expected 1 to {most} images of {record} bytes"
        )
    rows = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, record)
    y = checked_labels(rows[:, kind.label_bytes - 1], kind.classes, path)
    return rows[:, kind.label_bytes :].reshape(-1, *IMAGE), y


def read_pickled(path: Path, kind: Batches, most: int) -> tuple[Tensor, Tensor]:
    """A file of the pickled ("python") layout: x uint8 `[N, 3, 32, 32]`, y int64 `[N]`, N in 1..most.

    Nothing that the pickle names is imported or called. Raises `ArgumentError` for a damaged pickle, for
    what no batch needs (by name), for missing keys, counts that differ and labels out of range."""
    limit = most * PICKLED_MOST + 4096
    with opened(path) as stream:
        data = read_at_most(stream, limit + 1)
    if len(data) > limit:
        raise ArgumentError(
            f"{path}: found more than {limit} bytes, expected a batch of at most {most} images"
        )
    batch = read_batch(data, path, most)
    absent = [key for key in ("data", kind.labels) if key not in batch]
    if absent:
        raise ArgumentError(f"{path}: found no {' and no '.join(map(repr, absent))} in the batch")
    pixels, labels = array(batch["data"], path), batch[kind.labels]
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or not 1 <= len(pixels) <= most:
        raise ArgumentError(
            f"{path}: found data of shape {list(pixels.shape)}, expected [1 to {most}, {PIXELS}]"
        )
    # a list may hold itself, so that what is in it is never printed
    if not isinstance(labels, list) or not all(type(y) is int and abs(y) < 2**31 for y in labels):
        raise ArgumentError(f"{path}: found {kind.labels!r} that are no list of small integers")
    if len(labels) != len(pixels):
        raise ArgumentError(f"{path}: found {len(labels)} labels, expected {len(pixels)}, one an image")
    y = checked_labels(torch.tensor(labels, dtype=torch.int64), kind.classes, path)
    return torch.from_numpy(np.array(pixels, order="C")).reshape(-1, *IMAGE), y


def cifar10_binary(folder: Path) -> Split:
    """`cifar-10-batches-bin`: x uint8 `[N, 3, 32, 32]`, y int64 `[N]` in 0..9."""
    return _folder(folder, CIFAR10, read_binary, ".bin")


def cifar10_pickled(folder: Path) -> Split:
    """`cifar-10-batches-py`: x uint8 `[N, 3, 32, 32]`, y int64 `[N]` in 0..9."""
    return _folder(folder, CIFAR10, read_pickled, "")


def cifar100_binary(folder: Path) -> Split:
    """`cifar-100-binary`: x uint8 `[N, 3, 32, 32]`, y int64 `[N]` in 0..99, the fine classes."""
    return _folder(folder, CIFAR100, read_binary, ".bin")


def cifar100_pickled(folder: Path) -> Split:
    """`cifar-100-python`: x uint8 `[N, 3, 32, 32]`, y int64 `[N]` in 0..99, the fine classes."""
    return _folder(folder, CIFAR100, read_pickled, "")


def file_names(kind: Batches, suffix: str) -> tuple[str, ...]:
    """The files of a layout, train before test."""
    return tuple(f"{name}{suffix}" for name in (*kind.train, kind.test))


def _folder(
    folder: Path, kind: Batches, read: Callable[[Path, Batches, int], tuple[Tensor, Tensor]], suffix: str
) -> Split:
    batches = [read(file_in(folder, f"{name}{suffix}"), kind, kind.most[0]) for name in kind.train]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    x_test, y_test = read(file_in(folder, f"{kind.test}{suffix}"), kind, kind.most[1])
    return x, y, x_test, y_test
