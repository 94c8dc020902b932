"""What native code sees of a structure: addresses and sizes, and the column blocks that it is cut into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# 96 columns of a tile of 64 examples take 24 KiB, most of a first cache. To read and write a row's sums again
# for each block, and to leap over the row's other places, pays where the row has about BLOCK_PLACES in it:
# thinner rows get wider blocks. Measured with AVX-512 over widths 96 to all, densities .02 to 1 and 512 to
# 4096 columns: below BLOCK_DENSITY, and above BLOCK_MOST, one block is up to twice as fast on large matrices,
# a tenth slower on some small ones.
BLOCK_WIDTH = 96
BLOCK_PLACES = 38
BLOCK_DENSITY = 0.15
BLOCK_MOST = 700_000  # more places come from memory or a far cache, where leaping over them costs most


class NativeForm(NamedTuple):
    """Addresses and sizes of a structure, or of its transpose, as csrc/bindings_cpu.cpp takes them."""

    columns: int
    segments: int
    blocks: int
    stride: int
    rows: int
    cols: int


def native_form(structure: Sequence[Tensor], transposed: bool) -> NativeForm:
    """The native form of a structure, or of its transpose."""
    n_out, n_in = structure[0].numel() - 1, structure[3].numel() - 1
    columns, segments = structure[4:6] if transposed else structure[1:3]
    rows, cols = (n_in, n_out) if transposed else (n_out, n_in)
    blocked = segments.dim() == 2
    blocks, stride = (segments.shape[0] - 1, rows) if blocked else (1, 1)
    return NativeForm(columns.data_ptr(), segments.data_ptr(), blocks, stride, rows, cols)


def block_width(n_rows: int, n_columns: int, places: int) -> int:
    """Columns in a block of a matrix with so many kept places; the last block may be narrower."""
    density = places / (n_rows * n_columns) if n_rows * n_columns else 0.0
    if density < BLOCK_DENSITY or places > BLOCK_MOST:
        return n_columns
    width = BLOCK_WIDTH * max(1, round(BLOCK_PLACES / density / BLOCK_WIDTH))
    return -(-n_columns // max(1, round(n_columns / width)))


def segments(rows: Tensor, columns: Tensor, offsets: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Where each column block begins in each row: int32 `[blocks + 1, rows]`, or the offsets as one block."""
    if n_rows == 0 or n_columns == 0:
        return offsets
    width = block_width(n_rows, n_columns, rows.numel())
    if width == n_columns:
        return offsets
    blocks = -(-n_columns // width)
    bounds = (torch.arange(blocks + 1, device=rows.device) * width).clamp(max=n_columns)
    starts = torch.arange(n_rows, device=rows.device) * n_columns
    return torch.searchsorted(rows * n_columns + columns, bounds[:, None] + starts).int()
