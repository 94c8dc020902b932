"""`threshold_conv2d`: a 2-D convolution whose scores choose its weights; see `threshold_linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lotterykit.ops import dispatch
from lotterykit.ops.autocast import autocast
from lotterykit.ops.conv_geometry import check_images, geometry_of
from lotterykit.ops.threshold import Threshold, fixed_threshold, score_thresholds
from lotterykit.ops.threshold_autograd import threshold_product
from lotterykit.ops.threshold_linear import Arguments, check_layer, check_tensors
from lotterykit.ops.threshold_products import product_cpu, product_reference

OP = "threshold_conv2d"


def threshold_conv2d(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of the weights whose scores are kept; gradients as in `threshold_linear`.

    x: `[N, in, H, W]` or `[in, H, W]`, contiguous or channels-last, which y then is too; weight, scores:
    `[out, in / groups, kh, kw]`; bias: `[out]` or None; padding: ints, "valid" or "same". Returns
    `[N, out, H', W']`. Raises `ArgumentError` on shapes, sizes, dtypes, devices that do not fit.

    >>> scores = torch.tensor([3.0, 1.0, -2.0, -4.0]).view(1, 1, 2, 2)
    >>> (threshold,) = score_thresholds([scores], k=2)
    >>> threshold_conv2d(torch.arange(4.0).view(1, 2, 2), torch.ones(1, 1, 2, 2), scores, threshold)
    tensor([[[3.]]])
    """
    check_tensors(OP, x, weight, scores, bias)
    scored = weight.dtype
    x, weight, bias = autocast(x, weight, bias)
    check_layer(OP, x, weight, scores, threshold, bias, 4, scored)
    geometry = geometry_of(OP, tuple(weight.shape[2:]), stride, padding, dilation, groups)
    check_images(OP, x, weight, geometry)
    y = threshold_product(x if x.dim() == 4 else x.unsqueeze(0), weight, scores, threshold, bias, geometry)
    return y if x.dim() == 4 else y.squeeze(0)


def threshold_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """`threshold_conv2d` in plain torch: any floating dtype, any device, autograd by itself."""
    return product_reference(x, weight, scores, threshold, bias, geometry)


def threshold_conv2d_cpu(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """`threshold_conv2d`, without its gradient, through lotterykit._cpu."""
    return product_cpu(x, weight, scores, threshold, bias, geometry)


def call_of(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    bias: Tensor | None = None,
    **geometry: object,
) -> dispatch.Call:
    """What dispatch sees of a call: device and dtype; how many weights are kept is not known before."""
    return dispatch.Call(OP, x.device.type, x.dtype)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[Arguments, dict[str, Any]]]:
    """Small arguments of `threshold_conv2d`, positional and by keyword, for tests: every stride, padding,
    dilation and groups; empty, channels-last, unbatched, tied, all and none kept, both kinds of threshold."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    samples: list[tuple[Arguments, dict[str, Any]]] = []
    rows: list[tuple[tuple[int, ...], int, tuple[int, int], float, bool, dict[str, Any]]] = [
        ((2, 2, 4, 5), 3, (3, 3), 0.5, True, {"padding": 1}),
        ((1, 3, 5, 4), 2, (2, 3), 0.1, False, {"stride": (2, 1)}),
        ((2, 4, 4, 4), 4, (3, 3), 0.6, True, {"padding": (1, 2), "groups": 2, "stride": 2}),
        ((2, 5, 5), 3, (2, 2), 0.15, True, {"dilation": (2, 1)}),
        ((2, 2, 3, 4), 2, (2, 4), 0.5, True, {"padding": "same"}),
        ((3, 2, 2, 2), 2, (1, 1), 1.0, False, {"padding": "valid"}),
        ((2, 2, 3, 3), 2, (3, 3), 0.01, True, {"padding": 1}),
        ((0, 2, 3, 3), 2, (3, 3), 0.5, True, {"padding": 1}),
        ((2, 3, 1, 1), 3, (3, 3), 0.1, True, {"padding": 2, "groups": 3}),
    ]
    for shape, n_out, kernel, density, bias, options in rows:
        sides = n_out, shape[-3] // options.get("groups", 1), *kernel
        scores = normal(*sides)
        (threshold,) = score_thresholds([scores], density=density, seed=seed)
        operands = normal(*shape), normal(*sides), scores, threshold, normal(n_out) if bias else None
        samples.append((operands, options))
    turned = normal(2, 4, 5, 3).permute(0, 3, 1, 2)  # channels-last
    ties = normal(4, 2, 2, 3).permute(0, 3, 1, 2).sign()
    (_, threshold) = score_thresholds([normal(5), ties], k=9, seed=3)
    samples.append(((turned, normal(4, 3, 2, 2), ties, threshold, normal(8)[::2]), {"padding": "same"}))
    p = torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
    samples.append(((turned, normal(2, 3, 2, 2), p, fixed_threshold(0.5), None), {}))
    for arguments, _ in samples if requires_grad else ():
        for tensor in (*arguments[:3], arguments[4]):
            if tensor is not None:
                tensor.requires_grad_(True)
    return samples
