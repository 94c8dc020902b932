"""Rows and columns at which a convolutional net computes the same: for ones, all that no padding reaches.

SynFlow's input is constant, so its maps are too but near their borders. A convolution then needs one position
of each kind, and sums over positions stay exact: the gradients of all that one stands for are summed.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

SAME = 1e-9  # relative; kinds of positions differ by far more under random weights
WORTH = 2  # times fewer positions pay for taking them apart and together


class Axis(NamedTuple):
    """Lines (rows or columns) of a padded image, and the positions that a kernel takes along them.

    `kept`: lines to keep, int64; `source`: for each line a kept one that it equals, int64 `[lines]`;
    `spread`: float64 `[kept positions, positions]` of 0 and 1, which kept one each position repeats."""

    kept: Tensor
    source: Tensor
    spread: Tensor


class Repeats(NamedTuple):
    """What a convolution of stride 1 need not compute."""

    rows: Axis
    columns: Axis

    def hold(self, image: Tensor) -> bool:
        """Whether the lines of a padded image `[1, C, H, W]` equal those that stand for them."""
        same = image.index_select(2, self.rows.source).index_select(3, self.columns.source)
        return bool(((image - same).abs() <= SAME * same).all())

    def image(self, image: Tensor) -> Tensor:
        """The kept lines of a padded image."""
        return image.index_select(2, self.rows.kept).index_select(3, self.columns.kept)

    def output(self, kept: Tensor) -> Tensor:
        """All positions `[out, high, wide]` from the kept ones."""
        return self.rows.spread.T @ (kept @ self.columns.spread)


def repeats(image: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Repeats | None:
    """The repeats of a padded image `[1, C, H, W]` of no negative entries, None where there are few.

    The image must be what random weights left: lines that are equal then are so whatever the weights, and
    so are the derivatives in them. But where an activation saturates: `hold` must be asked as well."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows, columns = (_axis(_equal(image[0].movedim(axis, 0)), spans[axis - 1]) for axis in (1, 2))
    kept, positions = (rows.spread.shape[i] * columns.spread.shape[i] for i in (0, 1))
    return Repeats(rows, columns) if kept * WORTH <= positions else None


def _equal(lines: Tensor) -> list[bool]:
    """Whether each line `[lines, ...]` but the first equals the one before."""
    lines = lines.flatten(1)
    off = (lines[1:] - lines[:-1]).abs() > SAME * lines[1:].abs()
    return (~off.any(1)).tolist()


def _axis(equal: list[bool], span: int) -> Axis:
    """Runs of equal lines cut to `span`, the lines that one position reads."""
    starts = [0, *(i + 1 for i, same in enumerate(equal) if not same), len(equal) + 1]
    kept: list[int] = []
    source: list[int] = []
    window: list[int] = []  # for each line, where the same window begins among the kept lines
    for first, end in itertools.pairwise(starts):
        cut = min(end - first, span)
        window += [len(kept) + max(0, i - (end - first - cut)) for i in range(end - first)]
        source += [first + min(i, cut - 1) for i in range(end - first)]
        kept += range(first, first + cut)
    repeated = torch.tensor(window[: len(window) - span + 1])
    spread = torch.zeros(len(kept) - span + 1, len(repeated), dtype=torch.float64)
    spread[repeated, torch.arange(len(repeated))] = 1.0
    return Axis(torch.tensor(kept), torch.tensor(source), spread)


class RandomProducts:
    """Stands in for a network's products to see which positions are alike: random weights of rank one."""

    def __init__(self, weights: list[Tensor], groups: list[int]) -> None:
        self._weights, self._groups = weights, groups
        self._generator = torch.Generator().manual_seed(0)

    def product(self, layer: int, x: Tensor) -> Tensor:
        """Float64 `[out, lanes]` of x `[groups * columns, lanes]`."""
        rows, groups = self._weights[layer].shape[0], self._groups[layer]
        grouped = x.reshape(groups, -1, x.shape[-1])
        right = torch.rand(groups, 1, grouped.shape[1], generator=self._generator, dtype=torch.float64) + 0.5
        left = torch.rand(rows, 1, generator=self._generator, dtype=torch.float64) + 0.5
        sums = (right / max(1, grouped.shape[1])) @ grouped
        return left * sums[:, 0].repeat_interleave(rows // groups, 0)
