"""How the two threshold layers reach autograd: an eager function, and custom ops for compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.conv_geometry import image_format, out_size
from lotterykit.ops.threshold import Threshold
from lotterykit.ops.threshold_products import (
    Gradients,
    gradients_cpu,
    gradients_reference,
    op_of,
    product_cpu,
    product_reference,
)
from lotterykit.ops.threshold_triton import gradients_triton, product_triton


def threshold_product(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    """The layer behind both public functions, its operands checked."""
    if torch._C._are_functorch_transforms_active():
        forced = dispatch.forced_backend(op_of(geometry))
        if forced not in (None, "reference"):
            raise BackendError(
                f"{op_of(geometry)}: backend {forced!r} was forced, but inside torch.func transforms only "
                "the reference runs"
            )
        return product_reference(x, weight, scores, threshold, bias, geometry)
    cut, *rest = threshold
    if torch.compiler.is_compiling():
        return threshold_product_op(x, weight, scores, cut, bias, *rest, geometry)
    return _ThresholdProduct.apply(x, weight, scores, bias, threshold, geometry)  # without the dispatcher


# backend -> the layer and its gradients
PRODUCTS = {
    "reference": (product_reference, gradients_reference),
    "cpu": (product_cpu, gradients_cpu),
    "triton": (product_triton, gradients_triton),
}


def _backend(x: Tensor, geometry: list[int]) -> str:
    return dispatch.select(dispatch.Call(op_of(geometry), x.device.type, x.dtype)).backend


def _run(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Threshold, bias: Tensor | None, geometry: list[int]
) -> Tensor:
    y = PRODUCTS[_backend(x, geometry)][0](x, weight, scores, threshold, bias, geometry)
    return y.contiguous(memory_format=image_format(x)) if geometry else y


def _run_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Threshold,
    geometry: list[int],
    wants: tuple[bool, ...],
) -> Gradients:
    return PRODUCTS[_backend(x, geometry)][1](g, x, weight, scores, threshold, geometry, wants)


class _ThresholdProduct(torch.autograd.Function):
    """The eager way: the same implementations and gradients as the custom op, at a fraction of its cost."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scores: Tensor,
        bias: Tensor | None,
        threshold: Threshold,
        geometry: list[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scores, threshold.cut)
        ctx.rest, ctx.geometry = threshold[1:], geometry
        return _run(x, weight, scores, threshold, bias, geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scores, cut = ctx.saved_tensors
        # A gradient that is itself to be differentiated goes by torch's own operations.
        gradients = gradients_reference if torch.is_grad_enabled() else _run_gradients
        threshold, wants = Threshold(cut, *ctx.rest), ctx.needs_input_grad[:4]
        return (*gradients(g, x, weight, scores, threshold, ctx.geometry, wants), None, None)


@torch.library.custom_op("lotterykit::threshold_product", mutates_args=())
def threshold_product_op(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    cut: Tensor,
    bias: Tensor | None,
    absolute: bool,
    seed: int,
    offset: int,
    geometry: list[int],
) -> Tensor:
    """The op behind `threshold_linear` and `threshold_conv2d`, without validation."""
    threshold = Threshold(cut, absolute, seed, offset)
    return _run(x, weight, scores, threshold, bias, geometry)


@threshold_product_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    cut: Tensor,
    bias: Tensor | None,
    absolute: bool,
    seed: int,
    offset: int,
    geometry: list[int],
) -> Tensor:
    if not geometry:
        return x.new_empty(*x.shape[:-1], weight.shape[0])
    shape = (x.shape[0], weight.shape[0], *out_size(x, geometry))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=image_format(x))


@torch.library.custom_op("lotterykit::threshold_product_backward", mutates_args=())
def threshold_product_backward_op(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    cut: Tensor,
    absolute: bool,
    seed: int,
    offset: int,
    geometry: list[int],
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dscores, dbias of `threshold_product_op`; empty where not wanted."""
    threshold = Threshold(cut, absolute, seed, offset)
    dx, dweight, dscores, dbias = _run_gradients(g, x, weight, scores, threshold, geometry, tuple(wants))
    if dx is not None:
        dx = dx.contiguous(memory_format=image_format(x) if geometry else torch.contiguous_format)
    found = (t if t is None else t.contiguous() for t in (dweight, dscores, dbias))
    dweight, dscores, dbias = (g.new_empty(0) if t is None else t for t in found)
    return g.new_empty(0) if dx is None else dx, dweight, dscores, dbias


@threshold_product_backward_op.register_fake
def _(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    cut: Tensor,
    absolute: bool,
    seed: int,
    offset: int,
    geometry: list[int],
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = image_format(x) if geometry else torch.contiguous_format
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    dweight, dscores = (t.new_empty(t.shape) for t in (weight, scores))
    found = dx, dweight, dscores, g.new_empty(weight.shape[0])
    return tuple(t if wanted else g.new_empty(0) for t, wanted in zip(found, wants, strict=True))  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scores, cut, _, *ctx.rest, ctx.geometry = inputs
    ctx.save_for_backward(x, weight, scores, cut)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    wants = [*needs[:3], needs[4]]
    found = threshold_product_backward_op(g, *ctx.saved_tensors, *ctx.rest, ctx.geometry, wants)
    dx, dweight, dscores, dbias = (t if wanted else None for t, wanted in zip(found, wants, strict=True))
    return dx, dweight, dscores, None, dbias, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.absolute, ctx.seed, ctx.offset, ctx.geometry, ctx.wants = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """By autograd over the reference, whose operations torch differentiates any number of times."""
    g, x, weight, scores, cut = ctx.saved_tensors
    threshold = Threshold(cut, ctx.absolute, ctx.seed, ctx.offset)
    needs = ctx.needs_input_grad[:4]
    inputs = [t for t, needed in zip((g, x, weight, scores), needs, strict=True) if needed]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = gradients_reference(g, x, weight, scores, threshold, ctx.geometry, tuple(ctx.wants))
        pairs = [(o, d) for o, d in zip(outputs, grads, strict=True) if o is not None and o.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs],
                inputs,
                [d for _, d in pairs],
                create_graph=again,
                allow_unused=True,
            )
        )
    return (*(next(found) if needed else None for needed in needs), *[None] * 6)


threshold_product_op.register_autograd(_backward, setup_context=_setup)
threshold_product_backward_op.register_autograd(_double_backward, setup_context=_setup_backward)
