"""Triton kernels of `masked_linear`: forward, dX and dW in one kernel with three places for the mask.

All three compute C[i, j] = sum_r A[i, r] B[r, j] with float32 accumulation, and read the mask as packed
bits: uint8 [out, ceil(in / 8)], weight (o, i) is bit i % 8, the lowest being 0, of byte i // 8 of row o.

    forward  C = Y^T [out, B]   A = W   [out, in]  masked on load, bits by (i, r)   B = X^T [in, B]
    dX       C = dX^T [in, B]   A = W^T [in, out]  masked on load, bits by (r, i)   B = G^T [out, B]
    dW       C = dW [out, in]   A = G^T [out, B]   B = X [B, in]   C masked on store, bits by (i, j)

The masked operand stands on the left because Hopper's wgmma may take its left operand, and only that one,
from registers: the weights go from shared memory through a select straight into the tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from lotterykit.kernels import tiles
from lotterykit.kernels.configs import Config
from lotterykit.kernels.tiles import spread_bits, tile_of
from torch import Tensor

FORWARD, DX, DW = 0, 1, 2


def config_for(a: Tensor, b: Tensor) -> Config:
    """The pinned tile configuration for C = A B."""
    how = tiles.product_kind(a.dtype)
    bucket = "narrow" if b.shape[1] <= tiles.NARROW else "wide"
    # element loads of half precision need a register an address: large tiles would spill
    if bucket == "wide" and how == "half" and any(max(t.stride()) % 16 for t in (a, b)):
        bucket = "ragged"
    return tiles.config_for("masked_linear", how, bucket, a.device)


@triton.jit
def masked_product(
    a, b, bits, bias, c,
    I, J, R, IN_BYTES,  # noqa: E741
    a_i, a_r, b_r, b_j, c_i, c_j,
    MODE: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, STEPS: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile [BI, BJ] of C. Sizes I, J, R and strides in elements; IN_BYTES is the row length of `bits`.

    a, b, c: global memory, one dtype, any strides; bias: [I] or unused; WIDE: 64-bit offsets. STEPS is -1,
    or in the interpreter the number of steps along r: that of triton 3.6 cannot loop to a run-time bound
    with numpy >= 2.4. Its half-precision dot is wrong too, so there operands are float32 from the load on.
    """
    tile_i, tile_j = tile_of(tl.program_id(0), tl.cdiv(I, BI), tl.cdiv(J, BJ), GROUP)
    i = tile_i * BI + tl.arange(0, BI)
    j = tile_j * BJ + tl.arange(0, BJ)
    r = tl.arange(0, BR)
    i_byte = tile_i * (BI // 8) + tl.arange(0, BI // 8)
    r_byte = tl.arange(0, BR // 8)
    in_i = i < I
    in_j = j < J
    if WIDE:
        i, j, r = i.to(tl.int64), j.to(tl.int64), r.to(tl.int64)
        i_byte, r_byte = i_byte.to(tl.int64), r_byte.to(tl.int64)

    acc = tl.zeros((BI, BJ), dtype=tl.float32)
    for step in range(0, tl.cdiv(R, BR) if STEPS < 0 else STEPS):
        start = step * BR
        in_r = start + r < R
        left = tl.load(a + i[:, None] * a_i + (start + r)[None, :] * a_r, in_i[:, None] & in_r[None, :], 0.0)
        right = tl.load(b + (start + r)[:, None] * b_r + j[None, :] * b_j, in_r[:, None] & in_j[None, :], 0.0)
        if MODE == 0:
            at = start // 8 + r_byte
            packed = tl.load(
                bits + i[:, None] * IN_BYTES + at[None, :], in_i[:, None] & (at < IN_BYTES)[None, :], 0
            )
            left = tl.where(spread_bits(packed, BI, BR, False), left, 0.0)
        if MODE == 1:
            packed = tl.load(
                bits + (start + r)[None, :] * IN_BYTES + i_byte[:, None],
                (i_byte < IN_BYTES)[:, None] & in_r[None, :], 0,
            )  # fmt: skip
            left = tl.where(spread_bits(packed, BI, BR, True), left, 0.0)
        if STEPS >= 0:
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(bias + i, in_i, 0.0).to(tl.float32)[:, None]
    if MODE == 2:
        at = tile_j * (BJ // 8) + tl.arange(0, BJ // 8)
        packed = tl.load(
            bits + i[:, None] * IN_BYTES + at[None, :], in_i[:, None] & (at < IN_BYTES)[None, :], 0
        )
        acc = tl.where(spread_bits(packed, BI, BJ, False), acc, 0.0)
    tl.store(
        c + i[:, None] * c_i + j[None, :] * c_j, acc.to(c.dtype.element_ty), in_i[:, None] & in_j[None, :]
    )


def arguments(
    mode: int,
    a: Tensor,
    b: Tensor,
    bits: Tensor,
    bias: Tensor | None,
    c: Tensor,
    *,
    interpreted: bool = False,
) -> tuple[int, dict[str, Any], Config]:
    """Grid size, kernel arguments by name, and configuration for C = A B, all three as 2-D views."""
    (rows, inner), columns = a.shape, b.shape[1]
    config = config_for(a, b)
    values = {
        "a": a, "b": b, "bits": bits, "bias": a if bias is None else bias, "c": c,
        "I": rows, "J": columns, "R": inner, "IN_BYTES": bits.shape[1],
        "a_i": a.stride(0), "a_r": a.stride(1), "b_r": b.stride(0), "b_j": b.stride(1),
        "c_i": c.stride(0), "c_j": c.stride(1),
        "MODE": mode, "HAS_BIAS": bias is not None, "PRECISION": tiles.precision(a.dtype),
        "WIDE": tiles.any_wide((a, b, bits, c)),
        "STEPS": triton.cdiv(inner, config.r) if interpreted else -1,
        "BI": config.i, "BJ": config.j, "BR": config.r, "GROUP": 8,
    }  # fmt: skip
    return triton.cdiv(rows, config.i) * triton.cdiv(columns, config.j), values, config


def _launch(mode: int, a: Tensor, b: Tensor, bits: Tensor, bias: Tensor | None, c: Tensor) -> None:
    if c.numel() == 0:
        return
    if bias is not None:
        bias = bias.contiguous()
    interpreted = tiles.check_device(masked_product, a)
    grid, values, config = arguments(mode, a, b, bits, bias, c, interpreted=interpreted)
    tiles.launch(masked_product, grid, a.device, values, config.warps, config.stages)


def forward(x: Tensor, weight: Tensor, bits: Tensor, bias: Tensor | None) -> Tensor:
    """x `[B, in]`, weight `[out, in]`, bias `[out]` or None -> y `[B, out]`."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    _launch(FORWARD, weight, x.T, bits, bias, y.T)
    return y


def dx(g: Tensor, weight: Tensor, bits: Tensor) -> Tensor:
    """g `[B, out]`, weight `[out, in]` -> dx `[B, in]`."""
    result = g.new_empty(g.shape[0], weight.shape[1])
    _launch(DX, weight.T, g.T, bits, None, result.T)
    return result


def dw(g: Tensor, x: Tensor, bits: Tensor) -> Tensor:
    """g `[B, out]`, x `[B, in]` -> dw `[out, in]`, 0 where pruned."""
    result = g.new_empty(g.shape[1], x.shape[1])
    if g.dtype == torch.float32 and tiles.tf32_allowed():
        # tensor cores take TF32 operands only with the summed index contiguous; copying two activations
        # is cheap beside re-laying out every tile
        g, x = g.T.contiguous().T, x.T.contiguous().T
    _launch(DW, g.T, x, bits, None, result)
    return result


PRODUCTS = (forward, dx, dw)
