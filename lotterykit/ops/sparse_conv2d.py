"""`sparse_conv2d`: a 2-D convolution of kept weights alone, and its gradients at the kept places.

The structure is the `CSR` of the weight flattened to `[out, in / groups * kh * kw]`, the values `[nnz]` a
tensor of their own, so that parameters, gradients and optimizer state exist for kept weights alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.conv_geometry import (
    check_convolution,
    check_geometry,
    check_gradient,
    empty_images,
    empty_y,
    even,
    geometry_of,
    in_order,
    of_torch,
    order_of,
)
from lotterykit.ops.csr import CSR, csr_of
from lotterykit.ops.operands import (
    HALF,
    call_of_tensors,
    check_activation,
    check_csr,
    raised,
    sizes,
    transformed,
)
from lotterykit.ops.sparse_conv2d_native import Gradients, backward_cpu

OP = "sparse_conv2d"


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    csr: CSR,
    bias: Tensor | None = None,
    *,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d` of kept weights alone: y = act(x * W + bias).

    x: `[N, in, H, W]` or `[in, H, W]`, contiguous, channels-last or `batch_last`, which y then is too;
    values: `[nnz]`, W's kept weights in the order of `csr`, the structure of W `[out, in / groups, kh, kw]`
    flattened to `[out, in / groups * kh * kw]`; bias: `[out]` or None; padding: ints, "valid" or "same";
    activation: None or "relu". Returns `[N, out, H', W']`. Differentiable (any number of times) in x, values
    and bias.
    Autocast does not lower it: x and bias are raised to the dtype of `values` there. Inside `torch.func`
    transforms the reference runs. "Masked means absent" holds for y on the backend cpu; in the reference, a
    dense convolution, an x that is not finite meets the zeros of pruned weights as well, and on both the
    gradients of all values that read its channel may be NaN.
    Raises `ArgumentError` on shapes, sizes, dtypes, devices that do not fit and on a structure that was
    written to.

    >>> csr = CSR.from_mask(torch.tensor([[True, False, False, True]]))
    >>> sparse_conv2d(torch.arange(4.0).view(1, 2, 2), torch.tensor([3.0, 5.0]), csr, kernel_size=2)
    tensor([[[15.]]])
    """
    check_csr(OP, csr)
    if torch.is_autocast_enabled(csr.device.type):
        x, bias = raised(OP, x, values, bias)
    geometry = geometry_of(OP, kernel_size, stride, padding, dilation, groups)
    check_convolution(OP, x, values, csr, bias, geometry)
    check_activation(OP, activation)
    relu = activation == "relu"
    images = x if x.dim() == 4 else x.unsqueeze(0)
    if torch._C._are_functorch_transforms_active():
        y = transformed(OP, sparse_conv2d_reference, images, values, csr.tensors, bias, relu, geometry)
    elif torch.compiler.is_compiling():
        y = sparse_conv2d_op(images, values, csr.tensors, bias, relu, geometry)
    else:
        csr.check_unchanged()
        y = _SparseConv2d.apply(images, values, bias, csr.tensors, relu, geometry)  # without the dispatcher
    return y if x.dim() == 4 else y.squeeze(0)


def batch_last(x: Tensor) -> Tensor:
    """x `[N, C, H, W]` stored as `[C, H, W, N]`: the same shape and values, or x itself where it is so.

    In this order `sparse_conv2d` turns no images, neither x nor gradients, and y has it again, so that it
    holds from layer to layer as channels-last does. Elementwise operations keep it; torch's batch norm,
    pooling and convolutions return contiguous images, which `batch_last` brings back. It pays at low
    densities and for batches of a multiple of 16. Differentiable.
    Raises `ArgumentError` where x has not four dimensions.

    >>> batch_last(torch.zeros(16, 3, 4, 5)).stride()
    (1, 320, 80, 16)
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"batch_last: x must be [N, C, H, W], got {got}")
    return in_order(x, "batch_last")


def sparse_conv2d_reference(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, geometry: list[int]
) -> Tensor:
    """`sparse_conv2d` in plain torch, through the dense weight: any floating dtype, any device,
    differentiable by autograd itself. `structure` is `CSR.tensors`. Half precision is summed in float32."""
    dtype = x.dtype
    wide = torch.float32 if dtype in HALF else dtype
    images, rest = of_torch(x.to(wide), geometry)
    weight = _dense(values.to(wide), structure, geometry)
    y = F.conv2d(images, weight, None if bias is None else bias.to(wide), *rest)
    return (y.relu() if relu else y).to(dtype)


def backward_reference(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    geometry: list[int],
    wants: tuple[bool, ...],
) -> Gradients:
    """dx, dvalues and dbias, each where wanted, in plain torch, differentiable again; `gate` is y where it
    had a ReLU, else None."""
    dtype = x.dtype
    wide = torch.float32 if dtype in HALF else dtype
    g = (g if gate is None else torch.where(gate <= 0, 0.0, g)).to(wide)
    images, (stride, padding, dilation, groups) = of_torch(x.to(wide), geometry)
    weight = _dense(values.to(wide), structure, geometry)
    sides = stride, padding, dilation, False, [0, 0], groups
    wanted = [wants[0], wants[1], False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(g, images, weight, None, *sides, wanted)
    if wants[0]:
        top, left = (0, 0) if even(geometry) else (geometry[4], geometry[6])
        dx = dx[:, :, top : top + x.shape[2], left : left + x.shape[3]].to(dtype)
    return (
        dx if wants[0] else None,
        dweight.reshape(sizes(structure))[_places(structure)].to(dtype) if wants[1] else None,
        g.sum((0, 2, 3)).to(dtype) if wants[2] else None,
    )


def call_of(
    x: Tensor, values: Tensor, csr: CSR, bias: Tensor | None = None, **geometry: object
) -> dispatch.Call:
    """What dispatch sees of a call: device, dtype, and the density from the structure's nnz."""
    return dispatch.Call(OP, x.device.type, x.dtype, csr.density)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[tuple[Tensor, Tensor, CSR, Tensor | None], dict[str, Any]]]:
    """Small arguments of `sparse_conv2d`, positional and by keyword, for tests: every kernel size, stride,
    padding, dilation and groups; empty, transposed, channels-last, unbatched, all and none kept."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    samples: list[tuple[tuple[Tensor, Tensor, CSR, Tensor | None], dict[str, Any]]] = []
    rows: list[tuple[tuple[int, ...], int, float, bool, dict[str, Any]]] = [
        ((2, 2, 4, 5), 3, 0.5, True, {"kernel_size": 3, "padding": 1}),
        ((1, 3, 5, 4), 2, 0.4, False, {"kernel_size": (2, 3), "stride": (2, 1), "activation": "relu"}),
        ((2, 4, 4, 4), 4, 0.6, True, {"kernel_size": 3, "padding": (1, 2), "groups": 2, "stride": 2}),
        ((2, 5, 5), 3, 0.5, True, {"kernel_size": 2, "dilation": (2, 1), "activation": "relu"}),
        ((2, 2, 3, 4), 2, 0.5, True, {"kernel_size": (2, 4), "padding": "same"}),
        ((3, 2, 2, 2), 2, 1.0, False, {"kernel_size": 1, "padding": "valid"}),
        ((2, 2, 3, 3), 2, 0.0, True, {"kernel_size": 3, "padding": 1}),
        ((0, 2, 3, 3), 2, 0.5, True, {"kernel_size": 3, "padding": 1, "activation": "relu"}),
        ((2, 3, 1, 1), 3, 0.5, True, {"kernel_size": 3, "padding": 2, "groups": 3}),
        ((2, 2, 3, 5), 2, 0.5, True, {"kernel_size": 1, "stride": (2, 3)}),
    ]
    for shape, n_out, density, bias, options in rows:
        kernel = options["kernel_size"]
        size = kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[1]
        columns = shape[-3] // options.get("groups", 1) * size
        csr = CSR.from_mask(torch.rand(n_out, columns, generator=generator) < density)
        samples.append(((normal(*shape), normal(csr.nnz), csr, normal(n_out) if bias else None), options))
    csr = CSR.from_mask(torch.rand(2, 12, generator=generator) < 0.5)
    turned = normal(2, 4, 5, 3).permute(0, 3, 1, 2)  # channels-last
    samples.append(((turned, normal(2 * csr.nnz)[::2], csr, normal(4)[::2]), {"kernel_size": 2}))
    samples.append(
        (
            (normal(4, 5, 3, 2).permute(3, 2, 1, 0), normal(csr.nnz), csr, None),
            {"kernel_size": 2, "stride": 3},
        )
    )
    csr = CSR.from_mask(torch.rand(3, 12, generator=generator) < 0.5)
    images = batch_last(normal(16, 3, 2, 3))
    samples.append(((images, normal(csr.nnz), csr, normal(3)), {"kernel_size": 2, "padding": 1}))
    for arguments, _ in samples if requires_grad else ():
        for tensor in arguments:
            if isinstance(tensor, Tensor):
                tensor.requires_grad_(True)
    return samples


class _SparseConv2d(torch.autograd.Function):
    """The eager way: the same implementations and gradients as the custom op, at a fraction of its cost."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        structure: list[Tensor],
        relu: bool,
        geometry: list[int],
    ) -> Tensor:
        y = _run(x, values, structure, bias, relu, geometry)
        ctx.save_for_backward(x, values, y if relu else None)
        ctx.structure, ctx.geometry = structure, geometry
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values, gate = ctx.saved_tensors
        # A gradient that is itself to be differentiated goes by torch's own operations.
        backward = backward_reference if torch.is_grad_enabled() else _run_backward
        wants = ctx.needs_input_grad[:3]
        return (*backward(g, gate, x, values, ctx.structure, ctx.geometry, wants), None, None, None)


def _run(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, geometry: list[int]
) -> Tensor:
    route = dispatch.select(call_of_tensors(OP, x, structure))
    y: Tensor = dispatch.load(route)(x, values, structure, bias, relu, geometry)  # type: ignore[assignment]
    return in_order(y, order_of(x))


def _run_backward(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    geometry: list[int],
    wants: tuple[bool, ...],
) -> Gradients:
    native_way = dispatch.select(call_of_tensors(OP, x, structure)).backend == "cpu"
    backward = backward_cpu if native_way else backward_reference
    dx, dvalues, dbias = backward(g, gate, x, values, structure, geometry, wants)
    return None if dx is None else in_order(dx, order_of(x)), dvalues, dbias


@torch.library.custom_op("lotterykit::sparse_conv2d", mutates_args=())
def sparse_conv2d_op(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, geometry: list[int]
) -> Tensor:
    """The op behind `sparse_conv2d`; `structure` is `CSR.tensors`, all checked: anybody may call an op."""
    csr = csr_of(OP, structure)
    check_geometry(OP, geometry)
    check_convolution(OP, x, values, csr, bias, geometry, batched=True)
    return _run(x, values, csr.tensors, bias, relu, geometry)


@sparse_conv2d_op.register_fake
def _(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, geometry: list[int]
) -> Tensor:
    return empty_y(x, structure, geometry)


@torch.library.custom_op("lotterykit::sparse_conv2d_backward", mutates_args=())
def sparse_conv2d_backward_op(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    geometry: list[int],
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dvalues, dbias of `sparse_conv2d_op`; empty where not wanted."""
    csr = csr_of(OP, structure)
    check_geometry(OP, geometry)
    check_convolution(OP, x, values, csr, None, geometry, batched=True)
    check_gradient(OP, g, gate, x, csr, geometry, wants)
    dx, dvalues, dbias = _run_backward(g, gate, x, values, csr.tensors, geometry, tuple(wants))
    dx = g.new_empty(0) if dx is None else dx
    return dx, g.new_empty(0) if dvalues is None else dvalues, g.new_empty(0) if dbias is None else dbias


@sparse_conv2d_backward_op.register_fake
def _(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    geometry: list[int],
    wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = g.new_empty(0)
    dx = empty_images(x, tuple(x.shape), order_of(x)) if wants[0] else nothing
    dvalues = values.new_empty(values.shape) if wants[1] else nothing.clone()
    return dx, dvalues, g.new_empty(sizes(structure)[0]) if wants[2] else nothing.clone()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, structure, _, relu, ctx.geometry = inputs
    ctx.save_for_backward(x, values, output if relu else None, *structure)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, gate, *structure = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = [needs[0], needs[1], needs[3]]
    found = sparse_conv2d_backward_op(g, gate, x, values, structure, ctx.geometry, wants)
    dx, dvalues, dbias = (one if wanted else None for one, wanted in zip(found, wants, strict=True))
    return dx, dvalues, [None] * len(structure), dbias, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, gate, x, values, structure, ctx.geometry, ctx.wants = inputs
    ctx.save_for_backward(g, gate, x, values, *structure)


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """By autograd over the reference, whose operations torch differentiates any number of times."""
    g, gate, x, values, *structure = ctx.saved_tensors
    needs = ctx.needs_input_grad
    inputs = [t for t, needed in ((g, needs[0]), (x, needs[2]), (values, needs[3])) if needed]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = backward_reference(g, gate, x, values, structure, ctx.geometry, tuple(ctx.wants))
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
    dg, dx, dvalues = (next(found) if needed else None for needed in (needs[0], needs[2], needs[3]))
    return dg, None, dx, dvalues, [None] * len(structure), None, None


sparse_conv2d_op.register_autograd(_backward, setup_context=_setup)
sparse_conv2d_backward_op.register_autograd(_double_backward, setup_context=_setup_backward)


def _places(structure: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Row and column of each kept weight, int64 `[nnz]`."""
    offsets, columns = structure[:2]
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff().long(), output_size=columns.numel()), columns.long()


def _dense(values: Tensor, structure: list[Tensor], geometry: list[int]) -> Tensor:
    """The weight `[out, in / groups, kh, kw]`, 0 where pruned."""
    weight = values.new_zeros(sizes(structure)).index_put(_places(structure), values)
    return weight.view(weight.shape[0], -1, geometry[0], geometry[1])
