"""`threshold_linear` and `threshold_conv2d` through the Triton kernels: what these are handed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lotterykit.ops import dispatch
from lotterykit.ops.conv_geometry import image_format, out_size
from lotterykit.ops.operands import flat
from lotterykit.ops.threshold import Threshold
from lotterykit.ops.threshold_products import Gradients, bias_gradient, op_of
from lotterykit.ops.topk_mask import seed_words


def product_triton(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """The layer; float32, bfloat16 and float16."""
    forward, _, _ = _kernels(x, geometry)
    kept = _plain(threshold)
    if not geometry:
        y = x.new_empty(flat(x).shape[0], weight.shape[0])
        return forward(flat(x), weight, scores, kept, bias, y, []).view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]
    shape = (x.shape[0], weight.shape[0], *out_size(x, geometry))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=image_format(x))
    return forward(x, weight, scores, kept, bias, y, geometry)  # type: ignore[no-any-return]


def gradients_triton(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    geometry: list[int],
    wants: tuple[bool, ...],
) -> Gradients:
    """dx, dweight, dscores, dbias, each where wanted; one launch gives both those of the weights."""
    _, input_gradient, weight_gradients = _kernels(x, geometry)
    kept = _plain(threshold)
    rows, inputs = (g, x) if geometry else (flat(g), flat(x))
    dx = None
    if wants[0]:
        layout = image_format(x) if geometry else torch.contiguous_format
        dx = torch.empty(inputs.shape, dtype=x.dtype, device=x.device, memory_format=layout)
        dx = input_gradient(rows, weight, scores, kept, dx, geometry).view(x.shape)
    dweight, dscores = (
        t.new_empty(t.shape) if wanted else None
        for t, wanted in zip((weight, scores), wants[1:3], strict=True)
    )
    if dweight is not None or dscores is not None:
        weight_gradients(rows, inputs, weight, scores, kept, dweight, dscores, geometry)
    return dx, dweight, dscores, bias_gradient(g, geometry) if wants[3] else None


def _kernels(x: Tensor, geometry: list[int]) -> Any:
    return dispatch.load(dispatch.select(dispatch.Call(op_of(geometry), x.device.type, x.dtype)))


def _plain(threshold: Threshold) -> tuple[Tensor, bool, tuple[int, int], int]:
    """A threshold as kernels, which know nothing of ours, take it."""
    return threshold.cut, threshold.absolute, seed_words(threshold.seed), threshold.offset
