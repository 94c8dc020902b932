"""What `threshold_linear` and `threshold_conv2d` compute: their product and its gradients, by each backend.

A layer is linear where its `geometry` is empty, else a convolution (conv_geometry.py). The gradient is
straight-through: of the effective weights to every score, dS = dW_eff * W, times sign(S) where |S| is ranked.
Only the operands are saved for it; what was kept is found again from the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.ops.conv_geometry import even, of_torch, plain
from lotterykit.ops.operands import flat
from lotterykit.ops.sparse_conv2d_native import backward_cpu as conv_backward_cpu
from lotterykit.ops.sparse_conv2d_native import sparse_conv2d_cpu
from lotterykit.ops.spmm import spmm_cpu
from lotterykit.ops.threshold import Kept, Threshold, kept_mask

# Up to this density a product goes by the kept weights alone, above by the dense effective weight. The two
# ways cross between .2 and .5; the evidence (benchmarks/results/x86_64-avx2-threshold.json) is from a loaded
# machine, whose noise is as large as their difference there.
SPARSE_LINEAR, SPARSE_CONV2D = 0.25, 0.35
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class _Effective(torch.autograd.Function):
    """W where kept, else 0, with the straight-through gradient; torch.func transforms it too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, kept: Tensor, absolute: bool) -> Tensor:
        return torch.where(kept, weight, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.absolute = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, scores, kept = ctx.saved_tensors
        dweight = torch.where(kept, g, 0.0) if ctx.needs_input_grad[0] else None
        return dweight, _score_gradient(g, weight, scores, ctx.absolute), None, None


def effective_weight(weight: Tensor, scores: Tensor, threshold: Threshold) -> Tensor:
    """W where `threshold` keeps its score, else 0, in plain torch; differentiable in weight and, straight
    through, in scores."""
    return _Effective.apply(weight, scores, kept_mask(scores, threshold), threshold.absolute)


def product_reference(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """The layer in plain torch: any floating dtype, any device, differentiable by autograd itself."""
    return _product(x, effective_weight(weight, scores, threshold), bias, geometry)


def product_cpu(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None,
    geometry: list[int],
    *,
    isa: str = "best",
) -> Tensor:
    """The layer through lotterykit._cpu; the product itself is torch's where too many weights are kept."""
    kept = Kept(scores, threshold, isa=isa)
    if not _sparse(kept, geometry):
        return _product(x, kept.dense(weight), bias, geometry)
    values, structure = kept.compressed(weight)
    if geometry:
        return sparse_conv2d_cpu(x, values, structure, bias, False, geometry, isa=isa)
    return spmm_cpu(x, values, structure, bias, isa=isa)


def gradients_reference(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    geometry: list[int],
    wants: tuple[bool, ...],
) -> Gradients:
    """dx, dweight, dscores, dbias, each where wanted, in plain torch, differentiable again."""
    dense = effective_weight(weight, scores, threshold)
    dx, dbias = (
        _dx(g, x, dense, geometry) if wants[0] else None,
        bias_gradient(g, geometry) if wants[3] else None,
    )
    if not (wants[1] or wants[2]):
        return dx, None, None, dbias
    slope = _dweight(g, x, dense, geometry)
    return (
        dx,
        torch.where(kept_mask(scores, threshold), slope, 0.0) if wants[1] else None,
        _score_gradient(slope, weight, scores, threshold.absolute) if wants[2] else None,
        dbias,
    )


def gradients_cpu(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    geometry: list[int],
    wants: tuple[bool, ...],
    *,
    isa: str = "best",
) -> Gradients:
    """`gradients_reference` with the selection, dx and the scores' gradient by lotterykit._cpu."""
    kept = Kept(scores, threshold, isa=isa)
    dx = None
    if wants[0] and not _sparse(kept, geometry):
        dx = _dx(g, x, kept.dense(weight), geometry)
    elif wants[0]:
        values, structure = kept.compressed(weight, transposed=not geometry)
        if geometry:
            dx = conv_backward_cpu(g, None, x, values, structure, geometry, (True, False, False), isa=isa)[0]
        else:
            dx = spmm_cpu(g, values, structure, None, False, True, isa=isa)
    dweight = dscores = None
    if wants[1] or wants[2]:
        slope = _dweight(g, x, weight, geometry)  # of every weight: a score is trained whether kept or not
        dweight = kept.dense(slope) if wants[1] else None
        dscores = kept.score_gradient(slope, weight, threshold.absolute) if wants[2] else None
    return dx, dweight, dscores, bias_gradient(g, geometry) if wants[3] else None


def op_of(geometry: list[int]) -> str:
    return "threshold_conv2d" if geometry else "threshold_linear"


def _sparse(kept: Kept, geometry: list[int]) -> bool:
    if not geometry:
        return kept.density <= SPARSE_LINEAR
    return kept.density <= SPARSE_CONV2D


def _product(x: Tensor, dense: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    if not geometry:
        return F.linear(x, dense, bias)
    images, rest = of_torch(x, geometry)
    return F.conv2d(images, plain(dense), bias, *rest)


def _dx(g: Tensor, x: Tensor, dense: Tensor, geometry: list[int]) -> Tensor:
    if not geometry:
        return g @ dense
    dx = _conv_backward(g, x, dense, geometry, [True, False, False])[0]
    top, left = (0, 0) if even(geometry) else (geometry[4], geometry[6])
    return dx[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def _dweight(g: Tensor, x: Tensor, dense: Tensor, geometry: list[int]) -> Tensor:
    if not geometry:
        return flat(g).T @ flat(x)
    return _conv_backward(g, x, dense, geometry, [False, True, False])[1]


def bias_gradient(g: Tensor, geometry: list[int]) -> Tensor:
    return g.sum((0, 2, 3)) if geometry else flat(g).sum(0)


def _conv_backward(
    g: Tensor, x: Tensor, dense: Tensor, geometry: list[int], wanted: list[bool]
) -> tuple[Tensor, ...]:
    images, (stride, padding, dilation, groups) = of_torch(x, geometry)
    sides = stride, padding, dilation, False, [0, 0], groups
    return torch.ops.aten.convolution_backward(g, images, plain(dense), None, *sides, wanted)


def _score_gradient(slope: Tensor, weight: Tensor, scores: Tensor, absolute: bool) -> Tensor:
    dscores = slope * weight
    return (dscores * scores.sign() if absolute else dscores).to(scores.dtype)
