"""`sddmm`: g^T x at the kept places alone, the gradient of `spmm` in its values; see there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.csr import CSR, csr_of
from lotterykit.ops.operands import (
    CHUNK,
    HALF,
    check_csr,
    check_operand,
    cuda_places,
    cuda_queue,
    flat,
    implementation,
    native,
    native_structure,
    ready,
    tensors_of,
    transformed,
)
from lotterykit.ops.spmm import spmm_op


def sddmm(g: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """The sum over the batch of g[..., row] x[..., column] at each kept place of `csr`: `[nnz]`.

    g: `[..., out]`; x: `[..., in]` with the same leading dimensions. Differentiable (any number of times) in
    both. Autocast, `torch.func` and errors as in `spmm`.

    >>> csr = CSR.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> sddmm(torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0, 3.0]]), csr)
    tensor([ 2., 20., 30.])
    """
    check_csr("sddmm", csr)
    if torch.is_autocast_enabled(csr.device.type) and isinstance(g, Tensor) and isinstance(x, Tensor):
        wide = torch.promote_types(torch.promote_types(g.dtype, x.dtype), torch.float32)
        g, x = g.to(wide), x.to(wide)
    _check(g, x, csr)
    if torch._C._are_functorch_transforms_active():
        return transformed("sddmm", sddmm_reference, g, x, csr.tensors)
    if torch.compiler.is_compiling():
        return sddmm_op(g, x, csr.tensors)
    csr.check_unchanged()
    if torch.is_grad_enabled() and (g.requires_grad or x.requires_grad):
        return sddmm_op(g, x, csr.tensors)
    return _run(g, x, csr)


def sddmm_reference(g: Tensor, x: Tensor, structure: CSR | list[Tensor]) -> Tensor:
    """`sddmm` in plain torch: any floating dtype, any device, differentiable by autograd itself.

    `structure` is a CSR or its `tensors`. Half precision is summed in float32. At most CHUNK products
    at once.
    """
    structure = tensors_of(structure)
    counts = structure[0].diff().long()
    rows = torch.repeat_interleave(torch.arange(counts.numel(), device=x.device), counts)
    columns = structure[1].long()
    wide = torch.float32 if x.dtype in HALF else x.dtype
    flat_g, flat_x = flat(g).to(wide), flat(x).to(wide)
    total = flat_x.new_zeros(columns.numel())
    size = max(1, CHUNK // max(1, columns.numel()))
    for part_g, part_x in zip(flat_g.split(size), flat_x.split(size), strict=True):
        total = total + (part_g[:, rows] * part_x[:, columns]).sum(0)
    return total.to(x.dtype)


def sddmm_cpu(g: Tensor, x: Tensor, structure: CSR | list[Tensor], *, isa: str = "best") -> Tensor:
    """`sddmm` through lotterykit._cpu on `torch.get_num_threads()` threads; `isa` is there for tests."""
    g, x = ready(g), ready(x)
    dvalues = x.new_empty(structure.nnz if isinstance(structure, CSR) else structure[1].numel())
    product = native().sddmm_float64 if x.dtype == torch.float64 else native().sddmm_float32
    product(
        g.data_ptr(),
        x.data_ptr(),
        math.prod(x.shape[:-1]),
        native_structure(structure),
        dvalues.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return dvalues


def sddmm_cuda(g: Tensor, x: Tensor, structure: CSR | list[Tensor], *, way: str = "auto") -> Tensor:
    """`sddmm` through lotterykit._cuda on the current stream; `way` is there for tests, as in `spmm_cuda`."""
    g, x = ready(g), ready(x)
    places, dtype = cuda_places(structure), str(x.dtype).removeprefix("torch.")
    batch = math.prod(x.shape[:-1])
    with cuda_queue(x.device) as (native, index, stream):
        dvalues = x.new_empty(places[4])
        size = native.sddmm_workspace(dtype, batch, places)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        native.sddmm(
            dtype,
            g.data_ptr(),
            x.data_ptr(),
            batch,
            places,
            dvalues.data_ptr(),
            workspace.data_ptr(),
            way,
            index,
            stream,
        )
    return dvalues


def call_of(g: Tensor, x: Tensor, csr: CSR) -> dispatch.Call:
    """What dispatch sees of a call: device, dtype, and the density from the structure's nnz."""
    return dispatch.Call("sddmm", x.device.type, x.dtype, csr.density)


def sample_inputs(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False
) -> list[tuple[Tensor, Tensor, CSR]]:
    """Small arguments of `sddmm` for tests: odd, empty, transposed, batched, all and none kept."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for lead, n_in, n_out, density in (
        ((3,), 4, 5, 0.5),
        ((2, 3), 7, 2, 0.3),
        ((), 3, 4, 0.5),
        ((1,), 1, 1, 1.0),
        ((4,), 9, 3, 0.0),
        ((0,), 3, 2, 0.5),
        ((2,), 0, 3, 0.5),
        ((2,), 3, 0, 0.5),
    ):
        csr = CSR.from_mask(torch.rand(n_out, n_in, generator=generator) < density)
        g = torch.randn(*lead, n_out, generator=generator, dtype=torch.float64).to(dtype)
        x = torch.randn(*lead, n_in, generator=generator, dtype=torch.float64).to(dtype)
        samples.append((g, x, csr))
    csr = CSR.from_mask(torch.rand(5, 6, generator=generator) < 0.5)
    samples.append((torch.randn(5, 3).to(dtype).T, torch.randn(3, 12).to(dtype)[:, ::2], csr))
    for sample in samples if requires_grad else ():
        for tensor in sample[:2]:
            tensor.requires_grad_(True)
    return samples


def _run(g: Tensor, x: Tensor, csr: CSR) -> Tensor:
    return implementation("sddmm", x, csr)(g, x, csr)


@torch.library.custom_op("lotterykit::sddmm", mutates_args=())
def sddmm_op(g: Tensor, x: Tensor, structure: list[Tensor]) -> Tensor:
    """The op behind `sddmm`; `structure` is `CSR.tensors`, all checked: anybody may call an op."""
    csr = csr_of("sddmm", structure)
    _check(g, x, csr)
    return _run(g, x, csr)


@sddmm_op.register_fake
def _(g: Tensor, x: Tensor, structure: list[Tensor]) -> Tensor:
    return x.new_empty(structure[1].shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, structure = inputs
    ctx.save_for_backward(g, x, *structure)


def _backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    g, x, *structure = ctx.saved_tensors
    wants_g, wants_x = ctx.needs_input_grad[:2]
    return (
        spmm_op(x, v, structure, None, False, False) if wants_g else None,
        spmm_op(g, v, structure, None, False, True) if wants_x else None,
        [None] * len(structure),
    )


sddmm_op.register_autograd(_backward, setup_context=_setup)


def _check(g: Tensor, x: Tensor, csr: CSR) -> None:
    check_operand("sddmm", "g", g, csr.shape[0], csr)
    check_operand("sddmm", "x", x, csr.shape[1], csr)
    if g.shape[:-1] != x.shape[:-1] or g.dtype != x.dtype:
        raise ArgumentError(
            "sddmm: g and x must share leading dimensions and dtype, "
            f"got {tuple(g.shape)} of {g.dtype} and {tuple(x.shape)} of {x.dtype}"
        )
