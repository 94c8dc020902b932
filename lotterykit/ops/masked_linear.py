"""`masked_linear`: y = x (W where mask)^T + b; reference, validation, custom ops, autograd.

Three products, closed under differentiation (each one's backward is the other two):
forward y = x (W.m)^T, dx = g (W.m), dw = (g^T x).m. "Masked means absent": pruned weights are selected
away, never multiplied by 0, so they may hold anything, infinities and NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.autocast import autocast
from lotterykit.ops.formats import bit_mask, known_density
from lotterykit.ops.kept import kept_by
from lotterykit.ops.masked_copies import lowered_kept


class Products(NamedTuple):
    """The three products of one backend, on 2-D tensors x `[B, in]`, g `[B, out]`, weight `[out, in]`.

    `forward(x, weight, mask, bias)` -> `[B, out]`; `dx(g, weight, mask)` -> `[B, in]`;
    `dw(g, x, mask)` -> `[out, in]`. mask: the bool tensor `[out, in]` for the reference, the bits of its
    `BitMask` for kernels.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    dx: Callable[[Tensor, Tensor, Tensor], Tensor]
    dw: Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer that uses only the kept weights: y = x (W where mask, else absent)^T + bias.

    x: `[..., in]`; weight: `[out, in]`; mask: bool `[out, in]`, True = kept; bias: `[out]` or None.
    Returns `[..., out]`. Differentiable (twice) in x, weight and bias; the gradient of a pruned weight is 0.
    Under autocast the floating inputs are cast as `F.linear` casts them. Non-finite x spreads as in a dense
    layer whose pruned weights are 0. Inside `torch.func` transforms (vmap, grad, ...) the reference runs,
    since torch's custom ops do not support them all. What is known of a mask is kept from call to call:
    writes that hide from its version counter (through `.data` or a numpy view) are not seen.
    Raises `ArgumentError` on shapes, dtypes or devices that do not fit.
    """
    if torch._C._is_any_autocast_enabled():
        kept = lowered_kept("masked_linear", weight, mask)
        x, weight, bias = autocast(x, weight if kept is None else kept, bias)
        if kept is not None:
            _check(x, weight, mask, bias)
            return F.linear(x, weight, bias)
    if torch._C._are_functorch_transforms_active():
        _check(x, weight, mask, bias)
        return _transformed(x, weight, mask, bias)
    if torch.compiler.is_compiling():
        _check(x, weight, mask, bias)
        return masked_linear_op(x, weight, mask, bias)
    if (y := _short_way(x, weight, mask, bias)) is not None:
        return y
    _check(x, weight, mask, bias)
    if dispatch.select(call_of(x, weight, mask, bias)).backend == "reference":
        return masked_linear_reference(x, weight, mask, bias)
    return masked_linear_op(x, weight, mask, bias)


def masked_linear_reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """`masked_linear` in plain torch: any floating dtype, any device, differentiable by autograd itself."""
    return F.linear(x, torch.where(mask, weight, 0.0), bias)


def _short_way(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor | None:
    """The reference on the CPU, or None where it does not serve or where an argument may be wrong.

    A small layer takes as long as its checks, so here they are few, and those of x are left to `F.linear`.
    """
    if not (isinstance(mask, Tensor) and x.is_cpu and weight.is_cpu and x.dtype is weight.dtype):
        return None
    kept = kept_by("masked_linear", mask, weight.dtype)
    if kept is None or weight.shape != kept.shape or weight.dim() != 2:
        return None
    if bias is not None and not (bias.is_cpu and bias.dtype is kept.dtype and bias.shape == kept.shape[:1]):
        return None
    try:
        return F.linear(x, kept(weight), bias)
    except RuntimeError:
        _check(x, weight, mask, bias)
        raise


def _transformed(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    forced = dispatch.forced_backend("masked_linear")
    if forced not in (None, "reference"):
        raise BackendError(
            f"masked_linear: backend {forced!r} was forced, but inside torch.func transforms "
            "only the reference runs"
        )
    return masked_linear_reference(x, weight, mask, bias)


def _reference_dx(g: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return g @ torch.where(mask, weight, 0.0)


def _reference_dw(g: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, _rows(g).T @ _rows(x), 0.0).contiguous()


REFERENCE = Products(masked_linear_reference, _reference_dx, _reference_dw)


def call_of(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> dispatch.Call:
    """What dispatch sees of a call: device, dtype, and the density from the mask's cached count."""
    return dispatch.Call("masked_linear", x.device.type, x.dtype, known_density(mask))


def sample_inputs(
    *, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Small inputs (x, weight, mask, bias) for tests: odd, empty, transposed, batched, all and none kept."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    samples: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    for lead, n_in, n_out, density, bias in (
        ((3,), 4, 5, 0.5, True),
        ((2, 3), 7, 2, 0.3, False),
        ((), 3, 4, 0.5, True),
        ((1,), 1, 1, 1.0, True),
        ((4,), 9, 3, 0.0, True),
        ((5,), 2, 6, 1.0, False),
        ((0,), 3, 2, 0.5, True),
        ((2,), 0, 3, 0.5, True),
        ((2,), 3, 0, 0.5, False),
    ):
        mask = (torch.rand(n_out, n_in, generator=generator) < density).to(device)
        samples.append((normal(*lead, n_in), normal(n_out, n_in), mask, normal(n_out) if bias else None))
    mask = (torch.rand(6, 5, generator=generator) < 0.5).to(device)
    samples.append((normal(6, 3).T, normal(6, 5).T, mask.T, normal(5)))
    samples.append((normal(4, 10)[:, ::2], normal(12, 5)[::2], mask, normal(12)[::2]))
    for sample in samples if requires_grad else ():
        for tensor in sample:
            if tensor is not None and tensor.is_floating_point():
                tensor.requires_grad_(True)
    return samples


# The custom ops: `impl` chooses a backend at run time, the fake gives the shape.


def _backend(x: Tensor, mask: Tensor) -> tuple[Products, Tensor]:
    """The products that serve a call, and the mask in their format."""
    route = dispatch.select(dispatch.Call("masked_linear", x.device.type, x.dtype, known_density(mask)))
    if route.backend == "reference":
        return REFERENCE, mask
    return Products(*cast(Products, dispatch.load(route))), bit_mask(mask).bits


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@torch.library.custom_op(
    "lotterykit::masked_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias) -> Tensor",
)
def masked_linear_op(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The op behind `masked_linear`, without validation: what `torch.compile` and kernels use."""
    products, mask = _backend(x, mask)
    y = products.forward(_rows(x), weight, mask, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(
    "lotterykit::masked_linear_dx", mutates_args=(), schema="(Tensor g, Tensor weight, Tensor mask) -> Tensor"
)
def masked_linear_dx_op(g: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """g `[..., out]` times the kept weights: `[..., in]`."""
    products, mask = _backend(g, mask)
    dx = products.dx(_rows(g), weight, mask)
    return dx.view(*g.shape[:-1], weight.shape[1])


@torch.library.custom_op(
    "lotterykit::masked_linear_dw", mutates_args=(), schema="(Tensor g, Tensor x, Tensor mask) -> Tensor"
)
def masked_linear_dw_op(g: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """g^T x of `[..., out]` and `[..., in]` where kept, else 0: `[out, in]`."""
    products, mask = _backend(g, mask)
    return products.dw(_rows(g), _rows(x), mask)


@masked_linear_op.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@masked_linear_dx_op.register_fake
def _(g: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return g.new_empty(*g.shape[:-1], weight.shape[1])


@masked_linear_dw_op.register_fake
def _(g: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return g.new_empty(g.shape[-1], x.shape[-1])


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    wants_x, wants_weight, _, wants_bias = ctx.needs_input_grad
    return (
        masked_linear_dx_op(g, weight, mask) if wants_x else None,
        masked_linear_dw_op(g, x, mask) if wants_weight else None,
        None,
        _rows(g).sum(0) if wants_bias else None,
    )


def _dx_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, weight, mask = ctx.saved_tensors
    wants_g, wants_weight, _ = ctx.needs_input_grad
    return (
        masked_linear_op(h, weight, mask, None) if wants_g else None,
        masked_linear_dw_op(g, h, mask) if wants_weight else None,
        None,
    )


def _dw_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, x, mask = ctx.saved_tensors
    wants_g, wants_x, _ = ctx.needs_input_grad
    return (
        masked_linear_op(x, v, mask, None) if wants_g else None,
        masked_linear_dx_op(g, v, mask) if wants_x else None,
        None,
    )


def _save_first_three(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


for _op, _backward in (
    (masked_linear_op, _forward_backward),
    (masked_linear_dx_op, _dx_backward),
    (masked_linear_dw_op, _dw_backward),
):
    _op.register_autograd(_backward, setup_context=_save_first_three)


def _check(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or mask.shape != weight.shape:
        raise ArgumentError(
            "masked_linear: weight and mask must both be [out, in], "
            f"got {tuple(weight.shape)} and {tuple(mask.shape)}"
        )
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ArgumentError(f"masked_linear: x must be [..., {weight.shape[1]}], got {tuple(x.shape)}")
    if mask.dtype != torch.bool:
        raise ArgumentError(f"masked_linear: mask must be bool (True = kept), got {mask.dtype}")
    if not x.is_floating_point() or weight.dtype != x.dtype:
        raise ArgumentError(
            f"masked_linear: x and weight must share a floating dtype, got {x.dtype} and {weight.dtype}"
        )
    if weight.device != x.device or mask.device != x.device:
        raise ArgumentError(
            "masked_linear: x, weight and mask must be on one device, "
            f"got {x.device}, {weight.device} and {mask.device}"
        )
    if bias is not None and (
        bias.shape != weight.shape[:1] or bias.dtype != x.dtype or bias.device != x.device
    ):
        raise ArgumentError(
            f"masked_linear: bias must be [{weight.shape[0]}] of {x.dtype} on {x.device}, "
            f"got {tuple(bias.shape)} of {bias.dtype} on {bias.device}"
        )
