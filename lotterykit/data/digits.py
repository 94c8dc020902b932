"""Scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import torch

from lotterykit.data.planted import Split
from lotterykit.errors import LotterykitError

TEST_EVERY = 5


def digits() -> Split:
    """x uint8 `[N, 1, 8, 8]` in 0..16, y int64 `[N]` in 0..9. Every fifth image of a class is a test
    image: the images lie ordered by writer, who wrote the classes in turn. Needs scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LotterykitError(
            f"digits needs scikit-learn ({error}): pip install 'lotterykit[data]'"
        ) from error
    held = load_digits()
    x = torch.from_numpy(held.images).to(torch.uint8)[:, None]
    y = torch.from_numpy(held.target).to(torch.int64)
    test = torch.zeros(len(x), dtype=torch.bool)
    for label in y.unique():
        test[(y == label).nonzero()[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return x[~test], y[~test], x[test], y[test]
