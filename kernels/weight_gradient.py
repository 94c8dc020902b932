"""Triton kernel of the gradients of a convolution's, or a linear layer's, weights and of their scores.

    slope[i, j, t] = sum over pixels r of G[i, r] * X[j, the pixel that tap t reads for r]

i runs over the output channels of a group, j over its input channels. The epilogue turns the sum into

    dW = slope where kept, else 0       kept by bits, or by scores and their threshold
    dS = slope * W (* sign S)           straight through, for every score; no mask and no slope are stored

Weights are often fewer than programs fill the GPU: then the pixels are split, each split writes its float32
part, and a second launch adds the parts in order: the result depends on the sizes alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from lotterykit.kernels import tiles
from lotterykit.kernels.configs import Config
from lotterykit.kernels.kept_product import Scores, is_kept, threshold_of
from lotterykit.kernels.tiles import spread_bits, tile_of
from torch import Tensor

BITS, SCORES, MAGNITUDES = range(3)
WHOLE, PARTS, ADD = range(3)  # what a launch does: all of it; write parts; add parts
PROGRAMS, LEAST_STEPS = 264, 8  # two for each multiprocessor of an H100; steps worth a split


@triton.jit(do_not_specialize=["first", "second", "p_0"])
def weight_gradient(
    g, x, kept, cut, weight, dw, ds, parts,
    I, J, R, TAPS, TAPS_W, G_H, G_W, X_H, X_W, SPLITS, PER_SPLIT,  # noqa: E741
    g_g, g_n, g_i, g_h, g_w,
    x_g, x_n, x_j, x_h, x_w,
    k_g, k_i, k_j, k_h, k_w,
    w_g, w_i, w_j, w_h, w_w,
    d_g, d_i, d_j, d_h, d_w,
    mul_h, base_h, step_h, mul_w, base_w, step_w,
    first, second, p_0, p_g, p_i, p_j, p_h, p_w,
    BY: tl.constexpr, HAS_DW: tl.constexpr, HAS_DS: tl.constexpr, STAGE: tl.constexpr, FLAT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, STEPS: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile [BI, BJ] of one tap of one group. R: pixels of G; strides in elements; dw and ds share d_*.

    g, x, weight, dw: global memory, one dtype; kept: uint8 bits or floating scores; ds: the scores' dtype;
    parts: float32 [SPLITS, groups, TAPS, I, J]; cut and p_*: as in kept_product. PER_SPLIT: pixels of a
    split, a multiple of BR. STEPS: -1, or in the interpreter how many steps a split has, or splits to add.
    """
    tiles_i = tl.cdiv(I, BI)
    tiles_j = tl.cdiv(J, BJ)
    tile = tl.program_id(0) % (tiles_i * tiles_j)
    rest = tl.program_id(0) // (tiles_i * tiles_j)
    tap = rest % TAPS
    rest = rest // TAPS
    if STAGE == 1:
        split = rest % SPLITS
        group = rest // SPLITS
    else:
        split = 0
        group = rest
    tile_i, tile_j = tile_of(tile, tiles_i, tiles_j, GROUP)
    t_h, t_w = tap // TAPS_W, tap % TAPS_W
    i = tile_i * BI + tl.arange(0, BI)
    j = tile_j * BJ + tl.arange(0, BJ)
    in_i, in_j = i < I, j < J
    here = in_i[:, None] & in_j[None, :]
    groups = tl.num_programs(0) // (tiles_i * tiles_j * TAPS)
    if STAGE == 1:
        groups = groups // SPLITS
    part = ((group * TAPS + tap).to(tl.int64) * I + i[:, None]) * J + j[None, :]
    size_of_part = groups.to(tl.int64) * TAPS * I * J
    if WIDE:
        i, j, group = i.to(tl.int64), j.to(tl.int64), group.to(tl.int64)
        t_h, t_w = t_h.to(tl.int64), t_w.to(tl.int64)

    acc = tl.zeros((BI, BJ), dtype=tl.float32)
    if STAGE == 2:
        for number in range(0, SPLITS if STEPS < 0 else STEPS):
            acc += tl.load(parts + number * size_of_part + part, here, 0.0)
    else:
        g += group * g_g
        x += group * x_g
        begin = split * PER_SPLIT
        r = tl.arange(0, BR)
        r = r + (begin.to(tl.int64) if WIDE else begin)
        for step in range(0, PER_SPLIT // BR if STEPS < 0 else STEPS):
            at = r + step * BR
            in_r = at < R
            if FLAT:
                left_pixel, right_pixel, inside = at * g_n, at * x_n, in_r
            else:
                n, row, column = at // (G_H * G_W), (at // G_W) % G_H, at % G_W
                h = row * mul_h + (base_h + t_h * step_h)
                w = column * mul_w + (base_w + t_w * step_w)
                inside = in_r & (h >= 0) & (h < X_H) & (w >= 0) & (w < X_W)
                left_pixel = n * g_n + row * g_h + column * g_w
                right_pixel = n * x_n + h * x_h + w * x_w
            left = tl.load(g + i[:, None] * g_i + left_pixel[None, :], in_i[:, None] & in_r[None, :], 0.0)
            right = tl.load(x + right_pixel[:, None] + j[None, :] * x_j, inside[:, None] & in_j[None, :], 0.0)
            if STEPS >= 0:
                left, right = left.to(tl.float32), right.to(tl.float32)
            acc = tl.dot(left, right, acc, input_precision=PRECISION)

    if STAGE == 1:
        tl.store(parts + split.to(tl.int64) * size_of_part + part, acc, here)
    else:
        to = group * d_g + t_h * d_h + t_w * d_w + i[:, None] * d_i + j[None, :] * d_j
        kept += group * k_g + t_h * k_h + t_w * k_w
        if BY == 0:
            byte = tile_j * (BJ // 8) + tl.arange(0, BJ // 8)
            packed = tl.load(
                kept + i[:, None] * k_i + byte[None, :], in_i[:, None] & (byte * 8 < J)[None, :], 0
            )
            tl.store(
                dw + to, tl.where(spread_bits(packed, BI, BJ, False), acc, 0.0).to(dw.dtype.element_ty), here
            )
        else:
            scores = tl.load(kept + i[:, None] * k_i + j[None, :] * k_j, here, 0.0).to(tl.float32)
            if HAS_DW:
                least, most, _ = threshold_of(cut, kept.dtype.element_ty)
                place = p_0 + group * p_g + t_h * p_h + t_w * p_w + i[:, None] * p_i + j[None, :] * p_j
                place, first, second = place.to(tl.uint32), first.to(tl.uint32), second.to(tl.uint32)
                keep = is_kept(scores, least, most, place, first, second, BY == 2, True)
                tl.store(dw + to, tl.where(keep, acc, 0.0).to(dw.dtype.element_ty), here)
            if HAS_DS:
                entry = group * w_g + t_h * w_h + t_w * w_w + i[:, None] * w_i + j[None, :] * w_j
                slope = acc * tl.load(weight + entry, here, 0.0).to(tl.float32)
                if BY == 2:  # times 0 at 0, and NaN at NaN
                    slope *= tl.where(scores > 0, 1.0, tl.where(scores < 0, -1.0, scores))
                tl.store(ds + to, slope.to(ds.dtype.element_ty), here)


class Operands(NamedTuple):
    """Views, groups in front: g `[G, N, I, H, W]`, x `[G, N, J, H, W]`, kept (bits: J in bytes), weight and
    the results `[G, I, J, taps h, taps w]`; weight and ds only with `scores`."""

    g: Tensor
    x: Tensor
    kept: Tensor
    weight: Tensor | None
    dw: Tensor | None
    ds: Tensor | None
    scores: Scores | None
    geometry: list[int]


def operands(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    kept: Tensor | Scores,
    dw: Tensor | None,
    ds: Tensor | None,
    geometry: list[int],
) -> Operands:
    """Views of g `[N, out, H', W']`, x `[N, in, H, W]`; weight, dw, ds `[out, in / groups, kh, kw]`."""
    groups = geometry[10]
    scores = kept if isinstance(kept, Scores) else None
    if isinstance(kept, Scores):
        k = tiles.grouped(kept.values, 0, groups)
    else:
        k = tiles.grouped(kept, 0, groups).movedim(-1, 2)
    images = [tiles.grouped(t, 1, groups).movedim(1, 0) for t in (g, x)]
    like_weight = [None if t is None else tiles.grouped(t, 0, groups) for t in (weight, dw, ds)]
    return Operands(images[0], images[1], k, *like_weight, scores, geometry)


def arguments(
    o: Operands, stage: int, splits: int, parts: Tensor | None, *, interpreted: bool = False
) -> tuple[int, dict[str, Any], Config]:
    """Grid size, kernel arguments by name, and configuration of one launch."""
    kh, kw, sh, sw, top, _, left, _, dh, dw, groups = o.geometry
    _, n, rows, height, width = o.g.shape
    columns, pixels = o.x.shape[2], n * height * width
    flat = kh * kw == height == width == o.x.shape[3] == o.x.shape[4] == 1 and top == left == 0
    config = config_of(o)
    per_split = triton.cdiv(triton.cdiv(pixels, splits), config.r) * config.r
    first, second = (0, 0) if o.scores is None else o.scores.words
    place = 0 if o.scores is None else o.scores.offset
    result = o.dw if o.dw is not None else o.ds
    weight = result if o.weight is None else o.weight
    assert result is not None  # the caller asks for one of them
    assert weight is not None
    positions = (place, rows * columns * kh * kw, columns * kh * kw, kh * kw, kw, 1)
    by = BITS if o.scores is None else MAGNITUDES if o.scores.absolute else SCORES
    values: dict[str, Any] = {
        "g": o.g, "x": o.x, "kept": o.kept, "cut": o.g if o.scores is None else o.scores.cut,
        "weight": weight, "dw": result if o.dw is None else o.dw, "ds": result if o.ds is None else o.ds,
        "parts": o.g if parts is None else parts,
        "I": rows, "J": columns, "R": pixels, "TAPS": kh * kw, "TAPS_W": kw,
        "G_H": height, "G_W": width, "X_H": o.x.shape[3], "X_W": o.x.shape[4],
        "SPLITS": splits, "PER_SPLIT": per_split,
        "mul_h": sh, "base_h": -top, "step_h": dh, "mul_w": sw, "base_w": -left, "step_w": dw,
        "first": tiles.signed(first), "second": tiles.signed(second),
        "BY": by, "HAS_DW": o.dw is not None, "HAS_DS": o.ds is not None, "STAGE": stage, "FLAT": flat,
        "PRECISION": tiles.precision(o.g.dtype),
        "WIDE": pixels + config.r >= 2**31 or tiles.any_wide((o.g, o.x, o.kept, weight, result), 0),
        "STEPS": (splits if stage == ADD else per_split // config.r) if interpreted else -1,
        "BI": config.i, "BJ": config.j, "BR": config.r, "GROUP": 8,
    }  # fmt: skip
    for name, view, axes in (
        ("g", o.g, "gnihw"), ("x", o.x, "gnjhw"), ("k", o.kept, "gijhw"), ("w", weight, "gijhw"),
        ("d", result, "gijhw"),
    ):  # fmt: skip
        values |= {f"{name}_{axis}": stride for axis, stride in zip(axes, view.stride(), strict=True)}
    values |= {f"p_{axis}": tiles.signed(place) for axis, place in zip("0gijhw", positions, strict=True)}
    grid = groups * kh * kw * triton.cdiv(rows, config.i) * triton.cdiv(columns, config.j)
    return grid * (splits if stage == PARTS else 1), values, config


def config_of(o: Operands) -> Config:
    """The pinned tile configuration."""
    how = tiles.product_kind(o.g.dtype)
    if min(o.g.shape[2], o.x.shape[2]) <= tiles.NARROW:
        bucket = "narrow"
    else:
        smooth = tiles.is_smooth(o.g[0]) and tiles.is_smooth(o.x[0])
        bucket = "wide" if smooth else "ragged"
    kernel = "weight_gradient" if o.scores is None else "score_gradient"
    return tiles.config_for(kernel, how, bucket, o.g.device)


def splits_of(o: Operands, programs: int) -> int:
    """Into how many parts the pixels are split where `programs` would do it all."""
    steps = triton.cdiv(o.g.shape[1] * o.g.shape[3] * o.g.shape[4], config_of(o).r)
    return max(1, min(PROGRAMS // max(1, programs), steps // LEAST_STEPS))


def gradient(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    kept: Tensor | Scores,
    dw: Tensor | None,
    ds: Tensor | None,
    geometry: list[int],
) -> None:
    """Write dW and dS, each where given, every entry; they have the same strides. kept: bits
    `[out, kh, kw, ceil(in / groups / 8)]`, then ds is None, or scores."""
    result = dw if dw is not None else ds
    if result is None or result.numel() == 0:
        return
    interpreted = tiles.check_device(weight_gradient, g)
    o = operands(g, x, weight, kept, dw, ds, geometry)
    grid, values, config = arguments(o, WHOLE, 1, None, interpreted=interpreted)
    splits = splits_of(o, grid)
    launches = [(grid, values, config)]
    if splits > 1:
        parts = torch.empty(splits * result.numel(), dtype=torch.float32, device=g.device)
        launches = [arguments(o, stage, splits, parts, interpreted=interpreted) for stage in (PARTS, ADD)]
    for grid, values, config in launches:
        tiles.launch(weight_gradient, grid, g.device, values, config.warps, config.stages)
