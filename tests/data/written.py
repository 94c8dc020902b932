"""Small data sets, as the published files are written."""

import struct

import numpy as np

from lotterykit.data.cifar import CIFAR10


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images_and_labels(count, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return x, draw.integers(0, 10, count, dtype=np.uint8)


def examples(count, classes=10, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3072), dtype=np.uint8), draw.integers(0, classes, count).tolist()


def binary(x, y, kind=CIFAR10):
    coarse = bytes([7] * (kind.label_bytes - 1))
    return b"".join(coarse + bytes([label]) + pixels.tobytes() for pixels, label in zip(x, y, strict=True))
