"""`masked_conv2d` in Triton: y, dx and dw of a convolution whose mask is packed bits."""

from __future__ import annotations

from lotterykit.kernels.kept_product import product
from lotterykit.kernels.weight_gradient import gradient
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, bits: Tensor, bias: Tensor | None, y: Tensor, geometry: list[int]
) -> Tensor:
    """x `[N, in, H, W]`, weight `[out, in / groups, kh, kw]`, bits `[out, kh, kw, ceil(in / groups / 8)]` to
    y `[N, out, H', W']`, which is returned."""
    product(x, weight, bits, bias, y, geometry)
    return y


def dx(g: Tensor, weight: Tensor, bits: Tensor, result: Tensor, geometry: list[int]) -> Tensor:
    """g `[N, out, H', W']` to dx `[N, in, H, W]`, which is returned."""
    product(g, weight, bits, None, result, geometry, transposed=True)
    return result


def dw(g: Tensor, x: Tensor, bits: Tensor, result: Tensor, geometry: list[int]) -> Tensor:
    """g `[N, out, H', W']`, x `[N, in, H, W]` to dw `[out, in / groups, kh, kw]`, 0 where pruned."""
    gradient(g, x, None, bits, result, None, geometry)
    return result


PRODUCTS = (forward, dx, dw)
