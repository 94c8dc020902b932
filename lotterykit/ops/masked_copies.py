"""`masked_copies`: the kept weights of many tensors, in another dtype if wanted, by one launch on a GPU.

Where a dense product is bound by arithmetic, so that selecting inside it gains nothing, its operands are made
with this and the product is the vendor's: that is what masked layers do under autocast where `masked_linear`
and `masked_conv2d` are left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops.autocast import DEVICES
from lotterykit.ops.dispatch import Call, forced_backend, load, select
from lotterykit.ops.formats import bit_mask, known_density

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def masked_copies(
    weights: Sequence[Tensor], masks: Sequence[Tensor], *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Each weight where its mask, else 0, as new tensors of `dtype` (None: the weights').

    weights: floating, any shapes, one dtype, one device; masks: bool of their shapes, True = kept. What is
    pruned may hold anything. Channels-last weights give channels-last copies, all others contiguous ones. No
    gradient flows. Raises `ArgumentError`.

    >>> masked_copies([torch.tensor([1.0, 2.0])], [torch.tensor([True, False])])
    [tensor([1., 0.])]
    """
    _check(weights, masks, dtype)
    if not weights:
        return []
    plain = [w.detach() for w in weights]
    wanted, route = dtype or weights[0].dtype, select(call_of(weights, masks))
    if route.backend == "triton":
        return _by_kernel(load(route), plain, masks, wanted)
    return masked_copies_reference(plain, masks, wanted)


def lowered_kept(op: str, weight: Tensor, mask: Tensor) -> Tensor | None:
    """Under autocast, a float32 weight in its dtype where kept, else 0, by one launch and differentiable:
    where dispatch leaves `op` to torch's own product and has a kernel for `masked_copies`; else None."""
    device = weight.device.type
    if weight.dtype != torch.float32 or device not in DEVICES or not torch.is_autocast_enabled(device):
        return None
    if (
        weight.is_cpu and forced_backend("masked_copies") is None
    ):  # nothing but Triton's interpreter serves it
        return None
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if torch._C._len_torch_dispatch_stack():  # a mode looks on, whose tensors may hold nothing
        return None
    if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
        return None  # which `op` refuses in its own words
    dtype = torch.get_autocast_dtype(device)
    if select(Call(op, device, dtype, known_density(mask))).backend != "reference":
        return None
    if dtype not in FLOATING or select(call_of([weight], [mask])).backend == "reference":
        return None
    return _Lowered.apply(weight, mask, dtype)  # type: ignore[no-any-return]


class _Lowered(torch.autograd.Function):
    """A masked copy whose gradient goes to the kept weights."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.dtype = weight.dtype
        return masked_copies([weight], [mask], dtype=dtype)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0.0).to(ctx.dtype), None, None


def masked_copies_reference(
    weights: Sequence[Tensor], masks: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """`masked_copies` in plain torch, on any device."""
    return [
        torch.where(mask, weight, 0.0).to(dtype).contiguous(memory_format=_layout(weight))
        for weight, mask in zip(weights, masks, strict=True)
    ]


def _by_kernel(
    launch: Callable[..., object], weights: Sequence[Tensor], masks: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    layouts = [_layout(w) for w in weights]
    sources = [w.contiguous(memory_format=layout) for w, layout in zip(weights, layouts, strict=True)]
    targets = [torch.empty_like(w, dtype=dtype) for w in sources]
    last = [layout is torch.channels_last for layout in layouts]
    bits = [bit_mask(mask).flat_bits(flag) for mask, flag in zip(masks, last, strict=True)]
    launch(_flat(sources, last), bits, _flat(targets, last))
    return targets


def call_of(weights: Sequence[Tensor], masks: Sequence[Tensor], *, dtype: torch.dtype | None = None) -> Call:
    """What dispatch may know of `masked_copies(...)`."""
    if not weights:
        return Call("masked_copies", "cpu", dtype or torch.get_default_dtype())
    return Call("masked_copies", weights[0].device.type, weights[0].dtype)


def _flat(tensors: Sequence[Tensor], last: Sequence[bool]) -> list[Tensor]:
    pairs = zip(tensors, last, strict=True)
    return [(t.permute(0, 2, 3, 1) if flag else t).view(-1) for t, flag in pairs]


def _layout(weight: Tensor) -> torch.memory_format:
    last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _check(weights: object, masks: object, dtype: torch.dtype | None) -> None:
    for name, tensors in (("weights", weights), ("masks", masks)):
        if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
            raise ArgumentError(
                f"masked_copies: {name} must be a sequence of tensors, got {type(tensors).__name__}"
            )
        for number, t in enumerate(tensors):
            if not isinstance(t, Tensor) or t.layout is not torch.strided:
                raise ArgumentError(f"masked_copies: {name}[{number}] must be a dense tensor")
    assert isinstance(weights, Sequence)
    assert isinstance(masks, Sequence)
    if len(weights) != len(masks):
        raise ArgumentError(f"masked_copies: {len(weights)} weights need as many masks, got {len(masks)}")
    if dtype is not None and dtype not in FLOATING:
        raise ArgumentError(f"masked_copies: dtype must be floating, got {dtype}")
    for number, (w, m) in enumerate(zip(weights, masks, strict=True)):
        if w.dtype not in FLOATING or w.dtype != weights[0].dtype or w.device != weights[0].device:
            raise ArgumentError(
                f"masked_copies: weights must share a floating dtype and a device, weights[{number}] is "
                f"{w.dtype} on {w.device}, weights[0] {weights[0].dtype} on {weights[0].device}"
            )
        if m.dtype != torch.bool or m.shape != w.shape or m.device != w.device:
            raise ArgumentError(
                f"masked_copies: masks[{number}] must be bool {tuple(w.shape)} on {w.device}, "
                f"got {m.dtype} {tuple(m.shape)} on {m.device}"
            )
