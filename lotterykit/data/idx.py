"""IDX files, the format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist, "file formats")."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from lotterykit.data.files import checked_labels, file_in, opened, read_at_most
from lotterykit.data.planted import Split
from lotterykit.errors import ArgumentError

UNSIGNED_BYTE = 0x08  # the element type of a magic number; the others hold no pixels
MNIST_IMAGE = (28, 28)
MNIST_CLASSES = 10
MNIST_COUNTS = {"train": 60_000, "t10k": 10_000}
MNIST_FILES = tuple(
    f"{half}-{kind}-ubyte" for half in MNIST_COUNTS for kind in ("images-idx3", "labels-idx1")
)


def read_idx(path: Path, *, item: tuple[int, ...], most: int) -> Tensor:
    """An IDX file of unsigned bytes, plain or gzip: uint8 `[N, *item]`, N in 1..most.

    Magic number, dimensions and length are checked, and no more is decompressed than the header promises.
    Raises `ArgumentError` that names the file, what was found and what was expected."""
    size = 4 * (2 + len(item))
    magic = bytes([0, 0, UNSIGNED_BYTE, 1 + len(item)])
    with opened(path) as stream:
        header = read_at_most(stream, size)
        if header[:4] != magic:
            found = f"0x{header[:4].hex()}" if header else "nothing"
            raise ArgumentError(f"{path}: found the magic number {found}, expected 0x{magic.hex()} (IDX)")
        if len(header) < size:
            raise ArgumentError(f"{path}: cut short: found {len(header)} bytes of header, expected {size}")
        count, *found_item = struct.unpack(f">{1 + len(item)}I", header[4:])
        if tuple(found_item) != item:
            raise ArgumentError(f"{path}: found items of {_by(found_item)}, expected {_by(item)}")
        if not 1 <= count <= most:
            raise ArgumentError(f"{path}: found {count} items in its header, expected 1 to {most}")
        length = count * math.prod(item)
        data = read_at_most(stream, length)
        beyond = stream.read(1)  # gzip compares its checksum at the end only
    if len(data) < length or beyond:
        state = "longer than its header says" if beyond else "cut short"
        found = "more" if beyond else str(len(data))
        raise ArgumentError(f"{path}: {state}: found {found} bytes of items, expected {length}")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(count, *item)


def read_pair(
    images: Path, labels: Path, *, item: tuple[int, ...], classes: int, most: int
) -> tuple[Tensor, Tensor]:
    """Images and their labels: x uint8 `[N, *item]`, y int64 `[N]` in 0..classes - 1, N in 1..most.

    Raises `ArgumentError` as `read_idx` does, for labels out of range and for counts that differ."""
    y = checked_labels(read_idx(labels, item=(), most=most), classes, labels)
    x = read_idx(images, item=item, most=most)
    if len(x) != len(y):
        raise ArgumentError(f"{labels}: found {len(y)} labels, expected {len(x)}, one an image of {images}")
    return x, y


def mnist_folder(folder: Path) -> Split:
    """The four files of MNIST or Fashion-MNIST: x uint8 `[N, 1, 28, 28]`, y int64 `[N]` in 0..9."""
    halves: list[Tensor] = []
    for half, most in MNIST_COUNTS.items():
        x, y = read_pair(
            file_in(folder, f"{half}-images-idx3-ubyte"),
            file_in(folder, f"{half}-labels-idx1-ubyte"),
            item=MNIST_IMAGE,
            classes=MNIST_CLASSES,
            most=most,
        )
        halves += [x[:, None], y]
    return halves[0], halves[1], halves[2], halves[3]


def _by(sizes: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, sizes)) or "one byte"
