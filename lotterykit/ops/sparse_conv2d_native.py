"""`sparse_conv2d` and its gradients through lotterykit._cpu; `isa` is there for tests.

A `structure` is `CSR.tensors`, a `geometry` that of conv_geometry.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lotterykit.ops.conv_geometry import Order, empty_y, in_order, native_geometry, order_of
from lotterykit.ops.operands import is_aligned, native, ready, sizes

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def sparse_conv2d_cpu(
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    bias: Tensor | None,
    relu: bool,
    geometry: list[int],
    *,
    isa: str = "best",
) -> Tensor:
    """`sparse_conv2d_reference` on `torch.get_num_threads()` threads."""
    order = order_of(x)
    x, values = _ready_images(x, order), ready(values)
    bias = None if bias is None else ready(bias)
    y = empty_y(x, structure, geometry)
    convolve = native().conv2d_float64 if x.dtype == torch.float64 else native().conv2d_float32
    convolve(
        x.data_ptr(),
        native_geometry(x, y, geometry, order),
        _native_structure(structure),
        values.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        relu,
        y.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return y


def backward_cpu(
    g: Tensor,
    gate: Tensor | None,
    x: Tensor,
    values: Tensor,
    structure: list[Tensor],
    geometry: list[int],
    wants: tuple[bool, ...],
    *,
    isa: str = "best",
) -> Gradients:
    """`backward_reference` through lotterykit._cpu, in one native call."""
    order = order_of(x)
    g, x, values = _ready_images(g, order), _ready_images(x, order), ready(values)
    gate = None if gate is None else _ready_images(gate, order)
    dx = torch.empty_like(x) if wants[0] else None
    dvalues = torch.empty_like(values) if wants[1] else None
    dbias = g.new_empty(g.shape[1]) if wants[2] else None
    module = native()
    wide = x.dtype == torch.float64
    differentiate = module.conv2d_backward_float64 if wide else module.conv2d_backward_float32
    differentiate(
        g.data_ptr(),
        0 if gate is None else gate.data_ptr(),
        x.data_ptr(),
        native_geometry(x, g, geometry, order),
        _native_structure(structure),
        values.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        0 if dvalues is None else dvalues.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        torch.get_num_threads(),
        isa,
    )
    return dx, dvalues, dbias


def _ready_images(x: Tensor, order: Order) -> Tensor:
    """x as native code reads it: in the order, the negative bit resolved, aligned."""
    x = in_order(x.detach().resolve_neg() if x.is_neg() else x, order)
    return x if is_aligned(x) else x.clone()


def _native_structure(structure: list[Tensor]) -> tuple[int, ...]:
    """Addresses and sizes of a structure as one block, as csrc/bindings_cpu.cpp takes them."""
    return structure[1].data_ptr(), structure[0].data_ptr(), 1, 1, *sizes(structure)
