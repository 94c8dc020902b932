"""The geometry of a convolution: its checks, and its forms for torch and for native code.

A `geometry` is [kh, kw, stride h, w, padding top, bottom, left, right, dilation h, w, groups]: custom ops
take lists of ints, not objects.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops.csr import CSR
from lotterykit.ops.operands import sizes

Order = Literal["channels_first", "channels_last", "batch_last"]
ORDERS: tuple[Order, ...] = get_args(Order)  # as csrc/cpu/conv2d.h numbers them

MOST = 2**31 - 1
MOST_ENTRIES = 2**48  # of y: sizes in bytes stay far from overflow


def geometry_of(
    op: str, kernel_size: object, stride: object, padding: object, dilation: object, groups: object
) -> list[int]:
    """The geometry from the arguments of a convolution; raises `ArgumentError` where one does not fit."""
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    strides = _pair(op, "stride", stride, 1)
    dilations = _pair(op, "dilation", dilation, 1)
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= MOST:
        raise ArgumentError(f"{op}: groups must be an int of at least 1, got {groups!r}")
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ArgumentError(f"{op}: padding must be ints, 'valid' or 'same', got {padding!r}")
        if padding == "same" and strides != (1, 1):
            raise ArgumentError(f"{op}: padding 'same' needs stride 1, got {strides}")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        around = [total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2]
    else:
        height, width = _pair(op, "padding", padding, 0)
        around = [height, height, width, width]
    return [*kernel, *strides, *around, *dilations, groups]


def check_geometry(op: str, geometry: list[int]) -> None:
    """Raises `ArgumentError` unless `geometry` is one that `geometry_of` could have made."""
    least = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1)
    if len(geometry) != len(least) or any(
        not low <= n <= MOST for n, low in zip(geometry, least, strict=True)
    ):
        raise ArgumentError(
            f"{op}: geometry must be [kh, kw, stride h, w, padding top, bottom, left, right, dilation h, w, "
            f"groups], got {geometry}"
        )


def check_gradient(
    op: str, g: Tensor, gate: Tensor | None, x: Tensor, csr: CSR, geometry: list[int], wants: list[bool]
) -> None:
    """Raises `ArgumentError` unless g, and `gate` where there is one, are such as the convolution's y."""
    shape = (x.shape[0], csr.shape[0], *out_size(x, geometry))
    for name, tensor in (("g", g), ("gate", gate)):
        if tensor is not None and (
            tuple(tensor.shape) != shape
            or tensor.dtype != x.dtype
            or tensor.device != x.device
            or tensor.layout is not torch.strided
        ):
            raise ArgumentError(
                f"{op}: {name} must be {list(shape)} of {x.dtype} on {x.device}, "
                f"got {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            )
    if len(wants) != 3:
        raise ArgumentError(f"{op}: wants must say which of x, values and bias, got {wants}")


def check_convolution(
    op: str,
    x: Tensor,
    values: Tensor,
    csr: CSR,
    bias: Tensor | None,
    geometry: list[int],
    *,
    batched: bool = False,
) -> None:
    """Raises `ArgumentError` unless the tensors fit each other, the structure and the geometry; `batched`: x
    must be `[N, in, H, W]`."""
    for name, tensor in (("x", x), ("values", values), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise ArgumentError(
                f"{op}: {name} must be dense and floating, got {tensor.layout}, {tensor.dtype}"
            )
        if tensor.device != csr.device:
            raise ArgumentError(f"{op}: {name} is on {tensor.device}, but the structure on {csr.device}")
        if tensor.dtype != x.dtype:
            raise ArgumentError(f"{op}: x and {name} must share a dtype, got {x.dtype} and {tensor.dtype}")
    for name, tensor, size in (("values", values, csr.nnz), ("bias", bias, csr.shape[0])):
        if tensor is not None and tuple(tensor.shape) != (size,):
            raise ArgumentError(f"{op}: {name} must be [{size}], got {tuple(tensor.shape)}")
    _check_shapes(op, x, csr, geometry)
    if batched and x.dim() != 4:
        raise ArgumentError(f"{op}: x must be [N, in, H, W], got {tuple(x.shape)}")


def check_images(op: str, x: Tensor, weight: Tensor, geometry: list[int]) -> None:
    """Raises `ArgumentError` unless x `[N, in, H, W]` or `[in, H, W]` and weight `[out, in / groups, kh, kw]`
    fit each other and the geometry."""
    groups, n_out, n_in = geometry[10], weight.shape[0], weight.shape[1] * geometry[10]
    if n_out == 0 or n_in == 0 or n_out % groups:
        raise ArgumentError(
            f"{op}: weight must have channels, out a multiple of groups {groups}, got {tuple(weight.shape)}"
        )
    if x.dim() not in (3, 4) or x.shape[-3] != n_in or 0 in x.shape[-2:]:
        raise ArgumentError(
            f"{op}: x must be [N, {n_in}, H, W] or [{n_in}, H, W], H and W above 0, got {tuple(x.shape)}"
        )
    size = out_size(x, geometry)
    if min(size) < 1:
        raise ArgumentError(
            f"{op}: the padded x must not be smaller than the dilated kernel, y would be {size[0]}x{size[1]}"
        )


def out_size(x: Tensor, geometry: list[int]) -> tuple[int, int]:
    """Height and width of y for x `[..., H, W]`."""
    kh, kw, sh, sw, top, bottom, left, right, dh, dw, _ = geometry
    height = (x.shape[-2] + top + bottom - dh * (kh - 1) - 1) // sh + 1
    return height, (x.shape[-1] + left + right - dw * (kw - 1) - 1) // sw + 1


def of_torch(x: Tensor, geometry: list[int]) -> tuple[Tensor, tuple[Any, ...]]:
    """x `plain`, padded where its padding is uneven, and (stride, padding, dilation, groups) of torch's
    functions."""
    _, _, sh, sw, top, bottom, left, right, dh, dw, groups = geometry
    x, padding = plain(x), [top, left]
    if not even(geometry):
        x, padding = F.pad(x, (left, right, top, bottom)), [0, 0]
    return x, ([sh, sw], padding, [dh, dw], groups)


def plain(x: Tensor) -> Tensor:
    """Images or a weight of the CPU in [N, C, H, W] order, with no strides that could be those of
    channels-last too: in that layout torch's own float32 convolution with AVX-512 errs on some images of one
    channel and crashes on some narrower than their padding (torch 2.13). On other devices x itself."""
    return x.reshape(-1).view(x.shape) if x.device.type == "cpu" else x


def even(geometry: list[int]) -> bool:
    """Whether the padding is the same on both sides, which is all that torch's functions take as ints."""
    return geometry[4] == geometry[5] and geometry[6] == geometry[7]


def native_geometry(x: Tensor, y: Tensor, geometry: list[int], order: Order) -> list[int]:
    """The fields of Convolution as csrc/bindings_cpu.cpp takes them; only the shape of y counts."""
    kh, kw, sh, sw, top, _, left, _, dh, dw, groups = geometry
    return [*x.shape, *y.shape[1:], kh, kw, sh, sw, top, left, dh, dw, groups, ORDERS.index(order)]


def image_format(x: Tensor) -> torch.memory_format:
    """The memory format of y: x's, as torch's own convolution decides."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def order_of(x: Tensor) -> Order:
    """How the images `[N, C, H, W]` are stored, which those of y and of gradients then are too;
    "channels_first" where it is no way of `ORDERS`."""
    if x.is_contiguous():
        return "channels_first"
    if x.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "batch_last" if x.permute(1, 2, 3, 0).is_contiguous() else "channels_first"


def in_order(x: Tensor, order: Order) -> Tensor:
    """x itself where it is stored so, else a copy that is."""
    if order == "batch_last":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    last = order == "channels_last"
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def empty_images(x: Tensor, shape: tuple[int, ...], order: Order) -> Tensor:
    """Images `[N, C, H, W]` of x's dtype, on its device, not written yet."""
    if order == "batch_last":
        return x.new_empty(shape[1:] + shape[:1]).permute(3, 0, 1, 2)
    last = order == "channels_last"
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def empty_y(x: Tensor, structure: list[Tensor], geometry: list[int]) -> Tensor:
    return empty_images(x, (x.shape[0], sizes(structure)[0], *out_size(x, geometry)), order_of(x))


def _pair(op: str, name: str, value: object, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or not least <= n <= MOST for n in pair)
    ):
        raise ArgumentError(f"{op}: {name} must be an int of at least {least} or two, got {value!r}")
    return pair[0], pair[1]


def _check_shapes(op: str, x: Tensor, csr: CSR, geometry: list[int]) -> None:
    kernel, groups, n_out = geometry[0] * geometry[1], geometry[10], csr.shape[0]
    if n_out == 0 or n_out % groups:
        raise ArgumentError(f"{op}: out must be a multiple of groups {groups} above 0, got {n_out}")
    if csr.shape[1] == 0 or csr.shape[1] % kernel:
        raise ArgumentError(
            f"{op}: csr must have a multiple of {geometry[0]} x {geometry[1]} columns above 0, "
            f"got {csr.shape[1]}"
        )
    n_in = csr.shape[1] // kernel * groups
    if x.dim() not in (3, 4) or x.shape[-3] != n_in or 0 in x.shape[-2:]:
        raise ArgumentError(
            f"{op}: x must be [N, {n_in}, H, W] or [{n_in}, H, W], H and W above 0, got {tuple(x.shape)}"
        )
    size = out_size(x, geometry)
    if min(size) < 1:
        raise ArgumentError(
            f"{op}: the padded x must not be smaller than the dilated kernel, y would be {size[0]}x{size[1]}"
        )
    if max(size) > MOST or math.prod((*x.shape[:-3], n_out, *size)) > MOST_ENTRIES:
        raise ArgumentError(f"{op}: y would be {size[0]}x{size[1]}, which no memory holds")
