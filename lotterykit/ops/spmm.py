"""`spmm`: y = act(x W^T + b) where W holds kept weights only; `spmm` and `sddmm` are each other's gradients.

The structure is a `CSR`, the values `[nnz]` a tensor of their own, so that parameters, gradients and
optimizer state exist for kept weights alone. "Masked means absent": an infinite x meets kept weights only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.csr import CSR, csr_of
from lotterykit.ops.operands import (
    CHUNK,
    HALF,
    check_activation,
    check_csr,
    check_operand,
    cuda_places,
    cuda_queue,
    flat,
    implementation,
    native,
    native_order,
    native_structure,
    raised,
    ready,
    sizes,
    tensors_of,
    transformed,
)


def spmm(
    x: Tensor, values: Tensor, csr: CSR, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """A linear layer of kept weights alone: y = act(x W^T + bias).

    x: `[..., in]`; values: `[nnz]`, W's kept weights in the order of `csr` `[out, in]`; bias: `[out]` or
    None; activation: None or "relu". Returns `[..., out]`. Differentiable (any number of times) in x,
    values and bias. Autocast does not lower it: x and bias are raised to the dtype of `values` there. Inside
    `torch.func` transforms the reference runs. Raises `ArgumentError` on shapes, dtypes, devices that do not
    fit and on a structure that was written to.

    >>> csr = CSR.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> spmm(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0, 5.0]), csr)
    tensor([[ 3., 14.]])
    """
    check_csr("spmm", csr)
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(csr.device.type):
        x, bias = raised("spmm", x, values, bias)
    _check(x, values, csr, bias)
    check_activation("spmm", activation)
    relu = activation == "relu"
    if torch._C._are_functorch_transforms_active():
        return transformed("spmm", spmm_reference, x, values, csr.tensors, bias, relu)
    if torch.compiler.is_compiling():
        return spmm_op(x, values, csr.tensors, bias, relu, False)
    csr.check_unchanged()
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:  # else autograd refuses or records
        return _run(x, values, csr, bias, relu, False)
    return _Spmm.apply(x, values, bias, csr, relu)  # the short way, without the dispatcher


def spmm_reference(
    x: Tensor,
    values: Tensor,
    structure: CSR | list[Tensor],
    bias: Tensor | None = None,
    relu: bool = False,
    transposed: bool = False,
) -> Tensor:
    """`spmm` in plain torch: any floating dtype, any device, differentiable by autograd itself.

    `structure` is a CSR or its `tensors`; `transposed` multiplies x `[..., out]` by W instead. Half precision
    is summed in float32. Works through at most CHUNK products at once.
    """
    structure = tensors_of(structure)
    of_each, columns, n_rows = _places(structure, transposed)
    dtype = x.dtype
    wide = torch.float32 if dtype in HALF else dtype
    values = (values[structure[6].long()] if transposed else values).to(wide)
    rows = flat(x).to(wide)
    parts = []
    for part in rows.split(max(1, CHUNK // max(1, values.numel()))):
        products = part[:, columns] * values
        parts.append(part.new_zeros(part.shape[0], n_rows).index_add(1, of_each, products))
    y = torch.cat(parts) if bias is None else torch.cat(parts) + bias.to(wide)
    y = (y.relu() if relu else y).to(dtype)
    return y.view(*x.shape[:-1], n_rows)


def spmm_cpu(
    x: Tensor,
    values: Tensor,
    structure: CSR | list[Tensor],
    bias: Tensor | None = None,
    relu: bool = False,
    transposed: bool = False,
    *,
    isa: str = "best",
) -> Tensor:
    """`spmm` through lotterykit._cpu on `torch.get_num_threads()` threads; `isa` is there for tests."""
    x, values = ready(x), ready(values)
    bias = None if bias is None else ready(bias)
    lead = x.shape[:-1]
    form = native_structure(structure, transposed)
    y = x.new_empty((*lead, form.rows))
    product = native().spmm_float64 if x.dtype == torch.float64 else native().spmm_float32
    product(
        x.data_ptr(),
        math.prod(lead),
        form,
        values.data_ptr(),
        native_order(structure) if transposed else 0,
        0 if bias is None else bias.data_ptr(),
        relu,
        y.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return y


def spmm_cuda(
    x: Tensor,
    values: Tensor,
    structure: CSR | list[Tensor],
    bias: Tensor | None = None,
    relu: bool = False,
    transposed: bool = False,
    *,
    way: str = "auto",
) -> Tensor:
    """`spmm` through lotterykit._cuda on the current stream; `way` ("slabs", "gather") is there for tests."""
    x, values = ready(x), ready(values)
    bias = None if bias is None else ready(bias)
    places, dtype = cuda_places(structure, transposed), str(x.dtype).removeprefix("torch.")
    batch = math.prod(x.shape[:-1])
    with cuda_queue(x.device) as (native, index, stream):
        y = x.new_empty(*x.shape[:-1], places[2])
        size = native.spmm_workspace(dtype, batch, places, transposed)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        native.spmm(
            dtype,
            x.data_ptr(),
            batch,
            places,
            values.data_ptr(),
            tensors_of(structure)[6].data_ptr() if transposed else 0,
            0 if bias is None else bias.data_ptr(),
            relu,
            y.data_ptr(),
            workspace.data_ptr(),
            way,
            index,
            stream,
        )
    return y


def backward_cpu(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: CSR | list[Tensor],
    wants: tuple[bool, ...],
    *,
    isa: str = "best",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dvalues and dbias, each where wanted, in one native call; `gate` is y where it had a ReLU. `isa` is
    there for tests."""
    g, x, values = ready(g), ready(x), ready(values)
    gate = None if gate is None else ready(gate)
    dx = torch.empty_like(x) if wants[0] else None
    dvalues = torch.empty_like(values) if wants[1] else None
    form, turned = native_structure(structure), native_structure(structure, True)
    dbias = g.new_empty(form.rows) if wants[2] else None
    module = native()
    products = module.spmm_backward_float64 if x.dtype == torch.float64 else module.spmm_backward_float32
    products(
        g.data_ptr(),
        0 if gate is None else gate.data_ptr(),
        x.data_ptr(),
        math.prod(x.shape[:-1]),
        form,
        turned,
        values.data_ptr(),
        native_order(structure),
        0 if dx is None else dx.data_ptr(),
        0 if dvalues is None else dvalues.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return dx, dvalues, dbias


def call_of(
    x: Tensor, values: Tensor, csr: CSR, bias: Tensor | None = None, activation: str | None = None
) -> dispatch.Call:
    """What dispatch sees of a call: device, dtype, and the density from the structure's nnz."""
    return dispatch.Call("spmm", x.device.type, x.dtype, csr.density)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[Tensor, Tensor, CSR, Tensor | None, str | None]]:
    """Small arguments of `spmm` for tests: odd, empty, transposed, batched, all and none kept."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    samples: list[tuple[Tensor, Tensor, CSR, Tensor | None, str | None]] = []
    for lead, n_in, n_out, density, bias, activation in (
        ((3,), 4, 5, 0.5, True, None),
        ((2, 3), 7, 2, 0.3, False, "relu"),
        ((), 3, 4, 0.5, True, "relu"),
        ((1,), 1, 1, 1.0, True, None),
        ((4,), 9, 3, 0.0, True, None),
        ((5,), 2, 6, 1.0, False, None),
        ((0,), 3, 2, 0.5, True, "relu"),
        ((2,), 0, 3, 0.5, True, None),
        ((2,), 3, 0, 0.5, False, None),
    ):
        csr = CSR.from_mask(torch.rand(n_out, n_in, generator=generator) < density)
        samples.append(
            (normal(*lead, n_in), normal(csr.nnz), csr, normal(n_out) if bias else None, activation)
        )
    csr = CSR.from_mask(torch.rand(5, 6, generator=generator) < 0.5)
    samples.append((normal(6, 3).T, normal(2 * csr.nnz)[::2], csr, normal(10)[::2], "relu"))
    for sample in samples if requires_grad else ():
        for tensor in sample[:2] + sample[3:4]:
            if isinstance(tensor, Tensor):
                tensor.requires_grad_(True)
    return samples


class _Spmm(torch.autograd.Function):
    """The eager way: the same implementations and gradients as the custom op, a third of its cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, csr: CSR, relu: bool) -> Tensor:
        y = _run(x, values, csr, bias, relu, False)
        ctx.save_for_backward(x, values, y if relu else None)
        ctx.csr = csr
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values, gate = ctx.saved_tensors
        wants = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled() and _both_native(x, ctx.csr):
            return (*backward_cpu(g, gate, x, values, ctx.csr, wants), None, None)
        return (*_gradients(g, gate, x, values, ctx.csr.tensors, wants, False), None, None)


def _both_native(x: Tensor, csr: CSR) -> bool:
    from lotterykit.ops.sddmm import sddmm_cpu

    return implementation("spmm", x, csr) is spmm_cpu and implementation("sddmm", x, csr) is sddmm_cpu


def _gradients(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    wants: tuple[bool, ...],
    transposed: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dvalues, dbias by the two ops, so that they can be differentiated again."""
    from lotterykit.ops.sddmm import sddmm_op

    if gate is not None:
        g = torch.where(gate <= 0, 0.0, g)
    dense = (x, g) if transposed else (g, x)
    return (
        spmm_op(g, values, structure, None, False, not transposed) if wants[0] else None,
        sddmm_op(*dense, structure) if wants[1] else None,
        flat(g).sum(0) if wants[2] else None,
    )


def _run(x: Tensor, values: Tensor, csr: CSR, bias: Tensor | None, relu: bool, transposed: bool) -> Tensor:
    return implementation("spmm", x, csr)(x, values, csr, bias, relu, transposed)


@torch.library.custom_op("lotterykit::spmm", mutates_args=())
def spmm_op(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, transposed: bool
) -> Tensor:
    """The op behind `spmm`; `structure` is `CSR.tensors`, all checked: anybody may call an op."""
    csr = csr_of("spmm", structure)
    _check(x, values, csr, bias, transposed)
    return _run(x, values, csr, bias, relu, transposed)


@spmm_op.register_fake
def _(
    x: Tensor, values: Tensor, structure: list[Tensor], bias: Tensor | None, relu: bool, transposed: bool
) -> Tensor:
    return x.new_empty(*x.shape[:-1], sizes(structure)[1 if transposed else 0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, structure, _, relu, ctx.transposed = inputs
    ctx.save_for_backward(x, values, output if relu else None, *structure)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, gate, *structure = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = (needs[0], needs[1], needs[3])
    dx, dvalues, dbias = _gradients(g, gate, x, values, structure, wants, ctx.transposed)
    return dx, dvalues, [None] * len(structure), dbias, None, None


spmm_op.register_autograd(_backward, setup_context=_setup)


def _places(structure: list[Tensor], transposed: bool) -> tuple[Tensor, Tensor, int]:
    """Row and column (int64 `[nnz]`) of each place of W, or of its transpose, and its number of rows."""
    offsets, columns = structure[3:5] if transposed else structure[:2]
    n_rows = offsets.numel() - 1
    counts = offsets.diff().long()
    of_each = torch.repeat_interleave(torch.arange(n_rows, device=offsets.device), counts)
    return of_each, columns.long(), n_rows


def _check(x: Tensor, values: Tensor, csr: CSR, bias: Tensor | None, transposed: bool = False) -> None:
    n_out, n_in = csr.shape[::-1] if transposed else csr.shape
    check_operand("spmm", "x", x, n_in, csr)
    if values is None:  # which bias may be
        raise ArgumentError("spmm: values must be a tensor, got NoneType")
    for name, tensor, size in (("values", values, csr.nnz), ("bias", bias, n_out)):
        if tensor is None:
            continue
        check_operand("spmm", name, tensor, size, csr)
        if tensor.dim() != 1:
            raise ArgumentError(f"spmm: {name} must be [{size}], got {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise ArgumentError(f"spmm: x and {name} must share a dtype, got {x.dtype} and {tensor.dtype}")
