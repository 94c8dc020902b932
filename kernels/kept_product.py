"""Triton kernel of the convolutions and of `threshold_linear`: forward and dX as one implicit GEMM.

    C[i, j] = sum over taps t and channels r of kept(A)[i, r, t] * B[r, the pixel that t reads for j]

j runs over the pixels (image, row, column) of the result. Pixel (h, w) reads row mul_h * h + base_h +
step_h * t_h of B, columns alike; outside of the image it reads 0. A linear layer is one pixel and one tap.

    forward  C = y    A = W [out, in, kh, kw]   B = x      mul = stride, base = -padding, step = dilation
    dX       C = dx   A = W^T                   B = dL/dy  mul = 1; pixels and taps go in phases

A phase holds the pixels of dx whose rows and columns have one remainder by the stride, and the taps that
reach them: `phases`. All three operands are views with strides, so both memory formats are served.

What of A is kept is decided where it is loaded, by `BY`: bits `[out, kh, kw, ceil(in / 8)]`, the lowest
first; or scores of the shape of W: S > T, or S == T and the tie rank h <= H (lotterykit.ops.threshold,
csrc/tie_order.h). The kept operand stands on the left, as Hopper's wgmma may take that one from registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from lotterykit.kernels import tiles
from lotterykit.kernels.configs import Config
from lotterykit.kernels.tiles import spread_bits, tile_of
from torch import Tensor

BITS_ALONG_R, BITS_ALONG_I, SCORES, MAGNITUDES = range(4)


class Scores(NamedTuple):
    """Scores `[out, in / groups, kh, kw]` and their threshold: T and H in `cut`, float64 `[2]`; whether |S|
    is compared; the two words of the ties' seed; the flat position of the first score among all ranked."""

    values: Tensor
    cut: Tensor
    absolute: bool
    words: tuple[int, int]
    offset: int


@triton.jit
def tie_rank(position, first, second):
    """h of 32-bit positions, word for word csrc/tie_order.h."""
    x = position ^ first
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ second) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def threshold_of(cut, DTYPE: tl.constexpr):
    """T as scores of DTYPE are compared with it, in float32, H, and whether H lets every tie pass."""
    least = tl.load(cut).to(tl.float32).to(DTYPE).to(tl.float32)
    most = tl.load(cut + 1)
    least = tl.where(most < 0, float("nan"), least)  # keeps nothing
    return least, tl.maximum(most, 0.0).to(tl.int64), (most < 0) | (most >= 4294967295.0)


@triton.jit
def is_kept(scores, least, most, position, first, second, ABSOLUTE: tl.constexpr, TIES: tl.constexpr):
    """Which scores are kept; without TIES those that tie all are, and `position` is not looked at."""
    ranked = scores.to(tl.float32)
    if ABSOLUTE:
        ranked = tl.abs(ranked)
    if TIES:
        passes = tie_rank(position, first, second).to(tl.int64) <= most
        return (ranked > least) | ((ranked == least) & passes)
    return ranked >= least


@triton.jit
def _sum_of_products(
    a, kept, b, in_i, i, in_j, image, row, column, I, R, TAPS, TAPS_W, B_H, B_W,  # noqa: E741
    a_i, a_r, a_h, a_w, k_i, k_r, k_h, k_w, b_r, b_h, b_w,
    mul_h, base_h, step_h, mul_w, base_w, step_w,
    least, most, first, second, p_0, p_i, p_r, p_h, p_w, tile_i,
    BY: tl.constexpr, TIES: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    STEPS: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, BR)
    byte = tl.arange(0, BR // 8)
    i_byte = tile_i * (BI // 8) + tl.arange(0, BI // 8)
    if WIDE:
        r, byte, i_byte = r.to(tl.int64), byte.to(tl.int64), i_byte.to(tl.int64)
    blocks = tl.cdiv(R, BR)
    acc = tl.zeros((BI, BJ), dtype=tl.float32)
    # ties that decide are rare: their loop takes no shared memory from the other
    for step in tl.range(0, TAPS * blocks if STEPS < 0 else STEPS, num_stages=1 if TIES else None):
        if FLAT:
            start = step * BR
            t_h, t_w = 0, 0
            inside, pixel = in_j, image
        else:
            tap = step // blocks
            start = (step % blocks) * BR
            t_h, t_w = tap // TAPS_W, tap % TAPS_W
            h = row * mul_h + (base_h + t_h * step_h)
            w = column * mul_w + (base_w + t_w * step_w)
            inside = in_j & (h >= 0) & (h < B_H) & (w >= 0) & (w < B_W)
            pixel = image + h * b_h + w * b_w
            if WIDE:
                t_h, t_w = t_h.to(tl.int64), t_w.to(tl.int64)
        in_r = start + r < R
        there = in_i[:, None] & in_r[None, :]
        left = tl.load(
            a + (t_h * a_h + t_w * a_w) + i[:, None] * a_i + (start + r)[None, :] * a_r, there, 0.0
        )
        right = tl.load(b + (start + r)[:, None] * b_r + pixel[None, :], in_r[:, None] & inside[None, :], 0.0)
        which = kept + (t_h * k_h + t_w * k_w)
        if BY == 0:
            at = start // 8 + byte
            packed = tl.load(which + i[:, None] * k_i + at[None, :], in_i[:, None] & (at * 8 < R)[None, :], 0)
            keep = spread_bits(packed, BI, BR, False)
        elif BY == 1:
            packed = tl.load(
                which + (start + r)[None, :] * k_r + i_byte[:, None],
                (i_byte * 8 < I)[:, None] & in_r[None, :], 0,
            )  # fmt: skip
            keep = spread_bits(packed, BI, BR, True)
        else:
            scores = tl.load(which + i[:, None] * k_i + (start + r)[None, :] * k_r, there, 0.0)
            position = p_0 + t_h * p_h + t_w * p_w + i[:, None] * p_i + (start + r)[None, :] * p_r
            keep = is_kept(scores, least, most, position.to(tl.uint32), first, second, BY == 3, TIES)
        left = tl.where(keep, left, 0.0)
        if STEPS >= 0:
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["first", "second", "p_0"])
def kept_product(
    a, kept, b, bias, c, cut,
    I, J, R, TAPS, TAPS_W, C_H, C_W, B_H, B_W,  # noqa: E741
    a_g, a_i, a_r, a_h, a_w,
    k_g, k_i, k_r, k_h, k_w,
    b_g, b_n, b_r, b_h, b_w,
    c_g, c_n, c_i, c_h, c_w,
    mul_h, base_h, step_h, mul_w, base_w, step_w,
    first, second, p_0, p_g, p_i, p_r, p_h, p_w,
    BY: tl.constexpr, HAS_BIAS: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, STEPS: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile [BI, BJ] of one group of C. I, J, R: rows, pixels, channels of a group; strides in elements.

    a, b, c: global memory, one dtype; kept: uint8 bits or floating scores; bias: [groups * I] or unused;
    cut: float64 [2], T and H, or unused; p_*: flat positions of the scores, modulo 2^32. FLAT: one tap and
    one pixel an image. STEPS: -1, or in the interpreter the number of steps (see masked_linear.py).
    """
    tiles_i = tl.cdiv(I, BI)
    tiles_j = tl.cdiv(J, BJ)
    group = tl.program_id(0) // (tiles_i * tiles_j)
    tile_i, tile_j = tile_of(tl.program_id(0) % (tiles_i * tiles_j), tiles_i, tiles_j, GROUP)
    i = tile_i * BI + tl.arange(0, BI)
    j = tile_j * BJ + tl.arange(0, BJ)
    in_i = i < I
    if WIDE:
        i, group = i.to(tl.int64), group.to(tl.int64)
        j = tile_j.to(tl.int64) * BJ + tl.arange(0, BJ)
    in_j = j < J
    if FLAT:
        n, row, column = j, j, j
    else:
        n, row, column = j // (C_H * C_W), (j // C_W) % C_H, j % C_W
    a += group * a_g
    kept += group * k_g
    b += group * b_g
    p_0 += (group * p_g).to(tl.int32)
    first, second = first.to(tl.uint32), second.to(tl.uint32)

    if BY < 2:
        acc = _sum_of_products(
            a, kept, b, in_i, i, in_j, n * b_n, row, column, I, R, TAPS, TAPS_W, B_H, B_W,
            a_i, a_r, a_h, a_w, k_i, k_r, k_h, k_w, b_r, b_h, b_w,
            mul_h, base_h, step_h, mul_w, base_w, step_w,
            0.0, 0, first, second, p_0, p_i, p_r, p_h, p_w, tile_i,
            BY, False, FLAT, PRECISION, WIDE, STEPS, BI, BJ, BR,
        )  # fmt: skip
    else:
        least, most, every = threshold_of(cut, kept.dtype.element_ty)
        # The tie rank costs more than the matrix units need for their part: only where it decides.
        if every:
            acc = _sum_of_products(
                a, kept, b, in_i, i, in_j, n * b_n, row, column, I, R, TAPS, TAPS_W, B_H, B_W,
                a_i, a_r, a_h, a_w, k_i, k_r, k_h, k_w, b_r, b_h, b_w,
                mul_h, base_h, step_h, mul_w, base_w, step_w,
                least, most, first, second, p_0, p_i, p_r, p_h, p_w, tile_i,
                BY, False, FLAT, PRECISION, WIDE, STEPS, BI, BJ, BR,
            )  # fmt: skip
        else:
            acc = _sum_of_products(
                a, kept, b, in_i, i, in_j, n * b_n, row, column, I, R, TAPS, TAPS_W, B_H, B_W,
                a_i, a_r, a_h, a_w, k_i, k_r, k_h, k_w, b_r, b_h, b_w,
                mul_h, base_h, step_h, mul_w, base_w, step_w,
                least, most, first, second, p_0, p_i, p_r, p_h, p_w, tile_i,
                BY, True, FLAT, PRECISION, WIDE, STEPS, BI, BJ, BR,
            )  # fmt: skip

    if HAS_BIAS:
        acc += tl.load(bias + group * I + i, in_i, 0.0).to(tl.float32)[:, None]
    pixel = n * c_n
    if not FLAT:
        pixel += row * c_h + column * c_w
    c += group * c_g
    tl.store(c + i[:, None] * c_i + pixel[None, :], acc.to(c.dtype.element_ty), in_i[:, None] & in_j[None, :])


class Axis(NamedTuple):
    """Rows, or columns, of one phase: the first tap and the step to the next, how many taps; the first pixel
    of C and the step to the next; and what pixel q reads for tap t of them: mul * q + base + step * t."""

    tap: int
    tap_step: int
    taps: int
    pixel: int
    pixel_step: int
    mul: int
    base: int
    step: int


def forward_axis(kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    return Axis(0, 1, kernel, 0, 1, stride, -padding, dilation)


def phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Iterator[Axis]:
    """The phases of dx: pixel p gets tap t of dL/dy where (p + padding - dilation * t) / stride is whole.

    >>> [(a.pixel, a.tap, a.taps, a.base) for a in phases(8, 3, 2, 1, 1)]
    [(0, 1, 1, 0), (1, 0, 2, 1)]
    """
    tap_step = stride // math.gcd(stride, dilation)
    for pixel in range(min(stride, size)):
        found = [t for t in range(min(tap_step, kernel)) if (pixel + padding - dilation * t) % stride == 0]
        tap = found[0] if found else 0
        taps = len(range(tap, kernel, tap_step)) if found else 0
        base = (pixel + padding - dilation * tap) // stride
        yield Axis(tap, tap_step, taps, pixel, stride, 1, base, -dilation * tap_step // stride)


class Operands(NamedTuple):
    """Views of a product, groups in front: a and kept `[G, I, R, taps h, taps w]` (of bits, the packed axis
    counts bytes), b `[G, N, R, H, W]`, c `[G, N, I, H, W]` whose pixels are those of the phase. `transposed`:
    I are input channels. `scores`: those that `kept` is a view of, None for bits."""

    a: Tensor
    kept: Tensor
    b: Tensor
    c: Tensor
    bias: Tensor | None
    transposed: bool
    rows: Axis
    columns: Axis
    scores: Scores | None

    @property
    def by(self) -> int:
        if self.scores is None:
            return BITS_ALONG_I if self.transposed else BITS_ALONG_R
        return MAGNITUDES if self.scores.absolute else SCORES


def operands(
    source: Tensor,
    weight: Tensor,
    kept: Tensor | Scores,
    bias: Tensor | None,
    target: Tensor,
    geometry: list[int],
    *,
    transposed: bool,
) -> Iterator[Operands]:
    """The launches of y (source: x) or of dx (source: dL/dy, `transposed`), which go to `target`.

    geometry: [kh, kw, stride h, w, padding top, bottom, left, right, dilation h, w, groups]."""
    kh, kw, sh, sw, top, _, left, _, dh, dw, groups = geometry
    scores = kept if isinstance(kept, Scores) else None
    a = tiles.grouped(channels_near(weight), 0, groups)
    if isinstance(kept, Scores):
        k = tiles.grouped(channels_near(kept.values), 0, groups)
    else:
        k = tiles.grouped(kept, 0, groups).movedim(-1, 2)
    b, c = (tiles.grouped(t, 1, groups).movedim(1, 0) for t in (source, target))
    if not transposed:
        rows, columns = forward_axis(kh, sh, top, dh), forward_axis(kw, sw, left, dw)
        yield Operands(a, k, b, c, bias, False, rows, columns, scores)
        return
    a, k = a.transpose(1, 2), k.transpose(1, 2)
    for rows in phases(target.shape[2], kh, sh, top, dh):
        for columns in phases(target.shape[3], kw, sw, left, dw):
            taps = (
                slice(rows.tap, kh if rows.taps else rows.tap, rows.tap_step),
                slice(columns.tap, kw if columns.taps else columns.tap, columns.tap_step),
            )
            pixels = c[..., rows.pixel :: rows.pixel_step, columns.pixel :: columns.pixel_step]
            yield Operands(
                a[..., taps[0], taps[1]],
                k[..., taps[0], taps[1]],
                b,
                pixels,
                None,
                True,
                rows,
                columns,
                scores,
            )


def channels_near(weight: Tensor) -> Tensor:
    """`[out, in / groups, kh, kw]` with neighbouring input channels side by side: a copy where they are not,
    cheap beside the product, whose loads are then of several entries."""
    if weight.shape[1] == 1 or weight.stride(1) == 1:
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def arguments(o: Operands, *, interpreted: bool = False) -> tuple[int, dict[str, Any], Config]:
    """Grid size, kernel arguments by name, and configuration."""
    groups, n, rows, height, width = o.c.shape
    channels, taps = o.a.shape[2], o.a.shape[3] * o.a.shape[4]
    columns = n * height * width
    flat = taps == 1 and height == width == o.b.shape[3] == o.b.shape[4] == 1 and o.rows.base == 0
    flat = flat and o.columns.base == 0
    config = _config(o, columns)
    first, second = (0, 0) if o.scores is None else o.scores.words
    positions = (0, 1, 1, 1, 1, 1) if o.scores is None else _positions(o, o.scores)
    steps = taps * triton.cdiv(channels, config.r)
    values: dict[str, Any] = {
        "a": o.a, "kept": o.kept, "b": o.b, "bias": o.a if o.bias is None else o.bias, "c": o.c,
        "cut": o.a if o.scores is None else o.scores.cut,
        "I": rows, "J": columns, "R": channels, "TAPS": taps, "TAPS_W": o.a.shape[4],
        "C_H": height, "C_W": width, "B_H": o.b.shape[3], "B_W": o.b.shape[4],
        "mul_h": o.rows.mul, "base_h": o.rows.base, "step_h": o.rows.step,
        "mul_w": o.columns.mul, "base_w": o.columns.base, "step_w": o.columns.step,
        "first": tiles.signed(first), "second": tiles.signed(second),
        "BY": o.by, "HAS_BIAS": o.bias is not None, "FLAT": flat, "PRECISION": tiles.precision(o.a.dtype),
        "WIDE": columns + config.j >= 2**31 or tiles.any_wide((o.a, o.kept, o.b, o.c), 0),
        "STEPS": steps if interpreted else -1,
        "BI": config.i, "BJ": config.j, "BR": config.r, "GROUP": 8,
    }  # fmt: skip
    for name, view, axes in (("a", o.a, "girhw"), ("k", o.kept, "girhw"), ("b", o.b, "gnrhw")):
        values |= {f"{name}_{axis}": stride for axis, stride in zip(axes, view.stride(), strict=True)}
    values |= {f"c_{axis}": stride for axis, stride in zip("gnihw", o.c.stride(), strict=True)}
    values |= {f"p_{axis}": tiles.signed(place) for axis, place in zip("0girhw", positions, strict=True)}
    grid = groups * triton.cdiv(rows, config.i) * triton.cdiv(columns, config.j)
    return grid, values, config


def _config(o: Operands, columns: int) -> Config:
    how = tiles.product_kind(o.a.dtype)
    if columns <= tiles.NARROW:
        bucket = "narrow"
    else:
        # loads of single elements need a register an address: large tiles would spill
        bucket = "wide" if tiles.is_smooth(o.a[0]) and tiles.is_smooth(o.b[0]) else "ragged"
    kernel = "kept_product" if o.scores is None else "threshold_product"
    return tiles.config_for(kernel, how, bucket, o.a.device)


def _positions(o: Operands, scores: Scores) -> tuple[int, ...]:
    """The flat position of the first score that `o` reads, and how far it moves along g, i, r, h, w."""
    out, channels, height, width = scores.values.shape
    by_row, by_channel = channels * height * width, height * width
    start = scores.offset + o.rows.tap * width + o.columns.tap
    group = out // o.a.shape[0] * by_row
    i, r = (by_channel, by_row) if o.transposed else (by_row, by_channel)
    return start, group, i, r, o.rows.tap_step * width, o.columns.tap_step


def product(
    source: Tensor,
    weight: Tensor,
    kept: Tensor | Scores,
    bias: Tensor | None,
    target: Tensor,
    geometry: list[int],
    *,
    transposed: bool = False,
) -> None:
    """Write y, or with `transposed` dx, to `target`, every entry of it; arguments as of `operands`."""
    if target.numel() == 0:
        return
    interpreted = tiles.check_device(kept_product, source)
    bias = None if bias is None else bias.contiguous()
    for o in operands(source, weight, kept, bias, target, geometry, transposed=transposed):
        grid, values, config = arguments(o, interpreted=interpreted)
        tiles.launch(kept_product, grid, source.device, values, config.warps, config.stages)
