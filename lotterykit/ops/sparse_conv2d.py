"""`sparse_conv2d`: a convolution with kept weights only, here through the dense one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops.csr import CSR

Pair = int | tuple[int, int]


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    csr: CSR,
    bias: Tensor | None = None,
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """A convolution of kept weights alone.

    x: `[N, C, H, W]`; values: `[nnz]` in the order of `csr`, the structure of the weight flattened to
    `[out, in / groups * kh * kw]`; bias: `[out]` or None; activation: None or "relu". Autocast does not lower
    it: x and bias are raised to the dtype of `values` there. Raises `ArgumentError` on an unknown activation.
    """
    if activation not in (None, "relu"):
        raise ArgumentError(f"sparse_conv2d: activation must be None or 'relu', got {activation!r}")
    kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    weight = csr.scatter(values).view(csr.shape[0], -1, kh, kw)
    with torch.autocast(x.device.type, enabled=False):
        bias = bias if bias is None else bias.to(values.dtype)
        y = F.conv2d(x.to(values.dtype), weight, bias, stride, padding, dilation, groups)
    return y.relu() if activation == "relu" else y
