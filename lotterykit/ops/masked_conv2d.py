"""`masked_conv2d`: a convolution by its kept weights; reference, validation, custom ops, autograd.

Three products, closed under differentiation (each one's backward is the other two): y of x and W, dx of dL/dy
and W, dw of dL/dy and x where kept. As in `masked_linear`, pruned weights are absent and may hold anything.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.autocast import autocast
from lotterykit.ops.conv_geometry import (
    check_images,
    even,
    geometry_of,
    image_format,
    of_torch,
    out_size,
    plain,
)
from lotterykit.ops.formats import bit_mask, known_density
from lotterykit.ops.masked_copies import lowered_kept
from lotterykit.ops.operands import transformed

OP = "masked_conv2d"


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of the weights where mask, all others absent.

    x: `[N, in, H, W]` or `[in, H, W]`, contiguous or channels-last, which y then is too; weight: `[out,
    in / groups, kh, kw]`; mask: bool of its shape, True = kept; bias: `[out]` or None; padding: ints, "valid"
    or "same". Returns `[N, out, H', W']`. Differentiable (twice) in x, weight and bias; the gradient of a
    pruned weight is 0. Autocast and `torch.func` transforms as in `masked_linear`. Raises `ArgumentError` on
    shapes, sizes, dtypes, devices that do not fit.

    >>> mask = torch.tensor([True, False, False, True]).view(1, 1, 2, 2)
    >>> masked_conv2d(torch.arange(4.0).view(1, 2, 2), torch.ones(1, 1, 2, 2), mask)
    tensor([[[3.]]])
    """
    _check_tensors(x, weight, mask, bias, 4)
    geometry = geometry_of(OP, tuple(weight.shape[2:]), stride, padding, dilation, groups)
    y = _convolution(x if x.dim() == 4 else x.unsqueeze(0), weight, mask, bias, geometry)
    return y if x.dim() == 4 else y.squeeze(0)


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`masked_conv2d` of one dimension: x `[N, in, L]` or `[in, L]`; weight, mask `[out, in / groups, k]`."""
    _check_tensors(x, weight, mask, bias, 3)
    sides = 0 if padding == "valid" else padding
    if sides != "same":
        sides = (0, sides)  # type: ignore[assignment]
    kernel = (1, weight.shape[2])
    geometry = geometry_of(OP, kernel, (1, stride), sides, (1, dilation), groups)
    images = (x if x.dim() == 3 else x.unsqueeze(0)).unsqueeze(-2)
    # The mask goes as it is: its bits and its count are cached by the tensor, not by what it holds.
    y = _convolution(images, weight.unsqueeze(-2), mask, bias, geometry).squeeze(-2)
    return y if x.dim() == 3 else y.squeeze(0)


def masked_conv2d_reference(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """`masked_conv2d` in plain torch: any floating dtype, any device, differentiable by autograd itself."""
    images, rest = of_torch(x, geometry)
    return F.conv2d(images, plain(torch.where(mask.view(weight.shape), weight, 0.0)), bias, *rest)


def call_of(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, **geometry: object
) -> dispatch.Call:
    """What dispatch sees of a call: device, dtype, and the density from the mask's cached count."""
    return _call(x, mask)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], dict[str, Any]]]:
    """Small arguments of `masked_conv2d`, positional and by keyword, for tests: every stride, padding,
    dilation and groups; empty, channels-last, unbatched, all and none kept."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    samples: list[tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], dict[str, Any]]] = []
    rows: list[tuple[tuple[int, ...], int, tuple[int, int], float, bool, dict[str, Any]]] = [
        ((2, 2, 4, 5), 3, (3, 3), 0.5, True, {"padding": 1}),
        ((1, 3, 5, 4), 2, (2, 3), 0.1, False, {"stride": (2, 1)}),
        ((2, 4, 4, 4), 4, (3, 3), 0.6, True, {"padding": (1, 2), "groups": 2, "stride": 2}),
        ((2, 5, 5), 3, (2, 2), 0.15, True, {"dilation": (2, 1)}),
        ((2, 2, 3, 4), 2, (2, 4), 0.5, True, {"padding": "same"}),
        ((3, 2, 2, 2), 2, (1, 1), 1.0, False, {"padding": "valid"}),
        ((2, 2, 3, 3), 2, (3, 3), 0.0, True, {"padding": 1}),
        ((0, 2, 3, 3), 2, (3, 3), 0.5, True, {"padding": 1}),
        ((2, 3, 1, 1), 3, (3, 3), 0.1, True, {"padding": 2, "groups": 3}),
        ((1, 2, 7, 5), 2, (3, 2), 0.4, True, {"padding": 1, "stride": (3, 2), "dilation": (2, 1)}),
    ]
    for shape, n_out, kernel, density, bias, options in rows:
        weight = normal(n_out, shape[-3] // options.get("groups", 1), *kernel)
        mask = torch.rand(weight.shape, generator=generator) < density
        samples.append(((normal(*shape), weight, mask, normal(n_out) if bias else None), options))
    turned = normal(2, 4, 5, 3).permute(0, 3, 1, 2)  # channels-last
    weight, mask = normal(4, 2, 2, 3).permute(0, 3, 1, 2), torch.rand(4, 3, 2, 2, generator=generator) < 0.5
    samples.append(((turned, weight, mask, normal(8)[::2]), {"padding": "same"}))
    for arguments, _ in samples if requires_grad else ():
        for tensor in (*arguments[:2], arguments[3]):
            if tensor is not None:
                tensor.requires_grad_(True)
    return samples


def _convolution(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    kept = None
    if torch._C._is_any_autocast_enabled():
        kept = lowered_kept(OP, weight.reshape(mask.shape), mask)
    x, weight, bias = autocast(x, weight if kept is None else kept.view(weight.shape), bias)
    _check_layer(x, weight, bias)
    check_images(OP, x, weight, geometry)
    if kept is not None:
        images, rest = of_torch(x, geometry)
        return F.conv2d(images, weight, bias, *rest)
    if torch._C._are_functorch_transforms_active():
        return transformed(OP, masked_conv2d_reference, x, weight, mask, bias, geometry)
    if torch.compiler.is_compiling():
        return masked_conv2d_op(x, weight, mask, bias, geometry)
    if dispatch.select(_call(x, mask)).backend == "reference":
        y = masked_conv2d_reference(x, weight, mask, bias, geometry)
        return y.contiguous(memory_format=image_format(x))
    return masked_conv2d_op(x, weight, mask, bias, geometry)


def _call(x: Tensor, mask: Tensor) -> dispatch.Call:
    return dispatch.Call(OP, x.device.type, x.dtype, known_density(mask))


def _kernels(x: Tensor, mask: Tensor) -> tuple[Any, Any, Any] | None:
    """The three products of the backend that serves a call, None for the reference."""
    route = dispatch.select(_call(x, mask))
    return None if route.backend == "reference" else cast(tuple[Any, Any, Any], dispatch.load(route))


def _bits(mask: Tensor, geometry: list[int]) -> Tensor:
    bits = bit_mask(mask).bits
    return bits.view(bits.shape[0], *geometry[:2], bits.shape[-1])


# The custom ops: the implementation chooses a backend at run time, the fake gives the shape. A mask may lack
# the height that its weight has, where that is 1.


def _empty_y(x: Tensor, weight: Tensor, geometry: list[int]) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *out_size(x, geometry))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=image_format(x))


def _empty_dx(g: Tensor, size: list[int]) -> Tensor:
    return torch.empty(size, dtype=g.dtype, device=g.device, memory_format=image_format(g))


def _empty_dw(g: Tensor, mask: Tensor, geometry: list[int]) -> Tensor:
    return g.new_empty(*mask.shape[:2], *geometry[:2])


@torch.library.custom_op("lotterykit::masked_conv2d", mutates_args=())
def masked_conv2d_op(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """The op behind `masked_conv2d`, without validation: what `torch.compile` and kernels use."""
    kernels = _kernels(x, mask)
    y = _empty_y(x, weight, geometry)
    if kernels is None:
        return y.copy_(masked_conv2d_reference(x, weight, mask, bias, geometry))
    return kernels[0](x, weight, _bits(mask, geometry), bias, y, geometry)  # type: ignore[no-any-return]


@torch.library.custom_op("lotterykit::masked_conv2d_dx", mutates_args=())
def masked_conv2d_dx_op(
    g: Tensor, weight: Tensor, mask: Tensor, size: list[int], geometry: list[int]
) -> Tensor:
    """g `[N, out, H', W']` through the kept weights back to dx of `size`, `[N, in, H, W]`."""
    kernels = _kernels(g, mask)
    dx = _empty_dx(g, size)
    if kernels is None:
        dense = torch.where(mask.view(weight.shape), weight, 0.0)
        return dx.copy_(_torch_backward(g, g.new_empty(1).expand(size), dense, geometry, 0))
    return kernels[1](g, weight, _bits(mask, geometry), dx, geometry)  # type: ignore[no-any-return]


@torch.library.custom_op("lotterykit::masked_conv2d_dw", mutates_args=())
def masked_conv2d_dw_op(g: Tensor, x: Tensor, mask: Tensor, geometry: list[int]) -> Tensor:
    """The gradient of the kept weights, 0 where pruned: `[out, in / groups, kh, kw]`."""
    kernels = _kernels(g, mask)
    dw = _empty_dw(g, mask, geometry)
    if kernels is None:
        found = _torch_backward(g, x, dw, geometry, 1)
        return dw.copy_(torch.where(mask.view(dw.shape), found, 0.0))
    return kernels[2](g, x, _bits(mask, geometry), dw, geometry)  # type: ignore[no-any-return]


def _torch_backward(g: Tensor, x: Tensor, dense: Tensor, geometry: list[int], which: int) -> Tensor:
    """torch's gradient of x (0) or of the weights (1); of the other only the shape counts."""
    images, (stride, padding, dilation, groups) = of_torch(x, geometry)
    sides = stride, padding, dilation, False, [0, 0], groups
    wanted = [number == which for number in range(3)]
    found = torch.ops.aten.convolution_backward(g, images, plain(dense), None, *sides, wanted)[which]
    if which == 1:
        return cast(Tensor, found)
    top, left = (0, 0) if even(geometry) else (geometry[4], geometry[6])
    return cast(Tensor, found[:, :, top : top + x.shape[2], left : left + x.shape[3]])


@masked_conv2d_op.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    return _empty_y(x, weight, geometry)


@masked_conv2d_dx_op.register_fake
def _(g: Tensor, weight: Tensor, mask: Tensor, size: list[int], geometry: list[int]) -> Tensor:
    return _empty_dx(g, size)


@masked_conv2d_dw_op.register_fake
def _(g: Tensor, x: Tensor, mask: Tensor, geometry: list[int]) -> Tensor:
    return _empty_dw(g, mask, geometry)


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    wants_x, wants_weight, _, wants_bias, _ = ctx.needs_input_grad
    return (
        masked_conv2d_dx_op(g, weight, mask, list(x.shape), ctx.geometry) if wants_x else None,
        masked_conv2d_dw_op(g, x, mask, ctx.geometry) if wants_weight else None,
        None,
        g.sum((0, 2, 3)) if wants_bias else None,
        None,
    )


def _dx_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, weight, mask = ctx.saved_tensors
    wants_g, wants_weight, *_ = ctx.needs_input_grad
    return (
        masked_conv2d_op(h, weight, mask, None, ctx.geometry) if wants_g else None,
        masked_conv2d_dw_op(g, h, mask, ctx.geometry) if wants_weight else None,
        None,
        None,
        None,
    )


def _dw_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, x, mask = ctx.saved_tensors
    wants_g, wants_x, *_ = ctx.needs_input_grad
    return (
        masked_conv2d_op(x, v, mask, None, ctx.geometry) if wants_g else None,
        masked_conv2d_dx_op(g, v, mask, list(x.shape), ctx.geometry) if wants_x else None,
        None,
        None,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[-1]


for _op, _backward in (
    (masked_conv2d_op, _forward_backward),
    (masked_conv2d_dx_op, _dx_backward),
    (masked_conv2d_dw_op, _dw_backward),
):
    _op.register_autograd(_backward, setup_context=_save)


def _check_tensors(x: object, weight: object, mask: object, bias: object, dimensions: int) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("mask", mask), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and name == "bias"):
            raise ArgumentError(f"{OP}: {name} must be a tensor, got {type(tensor).__name__}")
    x, weight, mask = (cast(Tensor, t) for t in (x, weight, mask))
    sides = "kh, kw" if dimensions == 4 else "k"
    if weight.dim() != dimensions or mask.shape != weight.shape:
        raise ArgumentError(
            f"{OP}: weight and mask must both be [out, in / groups, {sides}], "
            f"got {tuple(weight.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool or mask.device != x.device:
        raise ArgumentError(
            f"{OP}: mask must be bool (True = kept) on {x.device}, got {mask.dtype} on {mask.device}"
        )
    if x.dim() not in (dimensions - 1, dimensions):
        wanted = "[N, in, H, W] or [in, H, W]" if dimensions == 4 else "[N, in, L] or [in, L]"
        raise ArgumentError(f"{OP}: x must be {wanted}, got {tuple(x.shape)}")


def _check_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.dtype != x.dtype:
            raise ArgumentError(
                f"{OP}: x, weight and bias must be dense and share a floating dtype, "
                f"got {name} of {tensor.layout}, {tensor.dtype} with x of {x.dtype}"
            )
        if tensor.device != x.device:
            raise ArgumentError(f"{OP}: x is on {x.device}, but {name} on {tensor.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"{OP}: bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
