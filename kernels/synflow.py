"""Triton kernels of SynFlow's products: |W| x, |W|^T g and the scores |w| x g, of kept weights alone.

Weights are float32 or float64 and read once a launch; vectors and sums are float64. A mask is bool
`[out, in]` or absent; pruned weights may hold anything.
"""

from __future__ import annotations

import triton
import triton.language as tl
from lotterykit.kernels import tiles
from torch import Tensor

ROWS, COLUMNS, WARPS = 8, 256, 4
PROGRAMS = 264  # two for each multiprocessor of an H100


@triton.jit
def _magnitudes(w, mask, row, column, OUT, IN, w_o, w_i, HAS_MASK: tl.constexpr):
    """|W| in float64, 0 where pruned or outside."""
    here = (row < OUT)[:, None] & (column < IN)[None, :]
    o, i = row.to(tl.int64)[:, None], column.to(tl.int64)[None, :]
    found = tl.load(w + o * w_o + i * w_i, here, 0.0).to(tl.float64)
    if HAS_MASK:
        found = tl.where(tl.load(mask + o * IN + i, here, 0) != 0, found, 0.0)
    return tl.abs(found), here


@triton.jit
def row_sums(
    w, mask, x, y, OUT, IN, w_o, w_i, HAS_MASK: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y[o] = sum_i |W[o, i]| x[i] of ROWS rows. STEPS: -1, or in the interpreter the number of steps."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for step in range(0, tl.cdiv(IN, COLUMNS) if STEPS < 0 else STEPS):
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        magnitude, _ = _magnitudes(w, mask, row, column, OUT, IN, w_o, w_i, HAS_MASK)
        acc += magnitude * tl.load(x + column, column < IN, 0.0)[None, :]
    tl.store(y + row, tl.sum(acc, 1), row < OUT)


@triton.jit
def column_sums(
    w, mask, g, parts, OUT, IN, w_o, w_i, PER_PART, HAS_MASK: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts[p, i] = sum of |W[o, i]| g[o] over the PER_PART rows of part p, a multiple of ROWS."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(1)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for step in range(0, PER_PART // ROWS if STEPS < 0 else STEPS):
        row = part * PER_PART + step * ROWS + tl.arange(0, ROWS)
        magnitude, _ = _magnitudes(w, mask, row, column, OUT, IN, w_o, w_i, HAS_MASK)
        acc += magnitude * tl.load(g + row, row < OUT, 0.0)[:, None]
    tl.store(parts + part.to(tl.int64) * IN + column, tl.sum(acc, 0), column < IN)


@triton.jit
def outer(
    w, mask, x, g, scores, OUT, IN, w_o, w_i, HAS_MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """scores[o, i] = |W[o, i]| (x[i] g[o]), float64 and contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    magnitude, here = _magnitudes(w, mask, row, column, OUT, IN, w_o, w_i, HAS_MASK)
    flow = tl.load(x + column, column < IN, 0.0)[None, :] * tl.load(g + row, row < OUT, 0.0)[:, None]
    tl.store(scores + row.to(tl.int64)[:, None] * IN + column[None, :], magnitude * flow, here)


def _values(weight: Tensor, mask: Tensor | None) -> dict[str, object]:
    return {
        "w": weight, "mask": weight if mask is None else mask.contiguous(), "OUT": weight.shape[0],
        "IN": weight.shape[1], "w_o": weight.stride(0), "w_i": weight.stride(1),
        "HAS_MASK": mask is not None,
        "ROWS": ROWS, "COLUMNS": COLUMNS,
    }  # fmt: skip


def forward(weight: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
    """|W| x: weight `[out, in]`, x float64 `[in]` -> float64 `[out]`."""
    y = x.new_empty(weight.shape[0])
    if y.numel():
        steps = triton.cdiv(weight.shape[1], COLUMNS) if tiles.check_kernel(row_sums, x.device) else -1
        values = _values(weight, mask) | {"x": x, "y": y, "STEPS": steps}
        tiles.launch(row_sums, triton.cdiv(len(y), ROWS), x.device, values, WARPS, 1)
    return y


def backward(weight: Tensor, mask: Tensor | None, g: Tensor) -> Tensor:
    """|W|^T g: g float64 `[out]` -> float64 `[in]`; rows are split among programs, parts added after."""
    rows, columns = weight.shape
    tiles_of_columns = triton.cdiv(columns, COLUMNS)
    parts = max(1, min(PROGRAMS // max(1, tiles_of_columns), triton.cdiv(rows, 8 * ROWS)))
    per_part = triton.cdiv(triton.cdiv(rows, parts), ROWS) * ROWS
    found = g.new_empty(parts, columns)
    if columns:
        steps = per_part // ROWS if tiles.check_kernel(column_sums, g.device) else -1
        values = _values(weight, mask) | {"g": g, "parts": found, "PER_PART": per_part, "STEPS": steps}
        tiles.launch(column_sums, (tiles_of_columns, parts), g.device, values, WARPS, 1)
    return found.sum(0)


def scores(weight: Tensor, mask: Tensor | None, x: Tensor, g: Tensor) -> Tensor:
    """|W| * (x g^T)^T, float64 `[out, in]`."""
    found = x.new_empty(weight.shape)
    if found.numel():
        tiles.check_kernel(outer, x.device)
        values = _values(weight, mask) | {"x": x, "g": g, "scores": found}
        grid = triton.cdiv(weight.shape[0], ROWS), triton.cdiv(weight.shape[1], COLUMNS)
        tiles.launch(outer, grid, x.device, values, WARPS, 1)
    return found


PRODUCTS = (forward, backward, scores)
