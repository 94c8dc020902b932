"""What the sparse products `spmm` and `sddmm` share: checks of operands, and their form for native code.

A `structure` is `CSR.tensors`: custom ops take tensors, not objects.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.csr import CSR
from lotterykit.ops.native_form import NativeForm, native_form

CHUNK = 1 << 22  # products that a reference holds at once
HALF = (torch.float16, torch.bfloat16)


def check_csr(op: str, csr: object) -> None:
    """Raises unless `csr` is a CSR."""
    if not isinstance(csr, CSR):
        raise ArgumentError(f"{op}: csr must be a CSR, got {type(csr).__name__}")


def check_operand(op: str, name: str, tensor: Tensor, last: int, csr: CSR) -> None:
    """Raises unless `tensor` is a dense floating `[..., last]` on the device of `csr`."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dim() < 1 or tensor.shape[-1] != last:
        raise ArgumentError(f"{op}: {name} must be [..., {last}], got {tuple(tensor.shape)}")
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        raise ArgumentError(f"{op}: {name} must be dense and floating, got {tensor.layout}, {tensor.dtype}")
    if tensor.device != csr.device:
        raise ArgumentError(f"{op}: {name} is on {tensor.device}, but the structure on {csr.device}")


def check_activation(op: str, activation: object) -> None:
    """Raises unless `activation` is None or "relu"."""
    if activation not in (None, "relu"):
        raise ArgumentError(f"{op}: activation must be None or 'relu', got {activation!r}")


def raised(op: str, x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype of `values`: autocast does not lower the sparse products."""
    for name, tensor in (("x", x), ("values", values), ("bias", bias)):
        if not isinstance(tensor, Tensor) and (tensor is not None or name != "bias"):
            raise ArgumentError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    return x.to(values.dtype), None if bias is None else bias.to(values.dtype)


def transformed(op: str, reference: Any, *args: Any) -> Tensor:
    """The reference, as torch's custom ops do not support every `torch.func` transform."""
    forced = dispatch.forced_backend(op)
    if forced not in (None, "reference"):
        raise BackendError(
            f"{op}: backend {forced!r} was forced, but inside torch.func transforms only the reference runs"
        )
    return reference(*args)


@functools.cache
def native() -> Any:
    """The module lotterykit._cpu."""
    return importlib.import_module("lotterykit._cpu")


@contextlib.contextmanager
def cuda_queue(device: torch.device) -> Iterator[tuple[Any, int, int]]:
    """lotterykit._cuda, and the number and current stream of a CUDA device, which is current meanwhile."""
    with current_queue(device) as (index, stream):
        yield importlib.import_module("lotterykit._cuda"), index, stream


@contextlib.contextmanager
def current_queue(device: torch.device) -> Iterator[tuple[int, int]]:
    """The number of a CUDA device and the address of its current stream; the device is current meanwhile."""
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device)
        yield stream.device_index, stream.cuda_stream


def flat(x: Tensor) -> Tensor:
    """`[..., n]` as `[batch, n]`."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def ready(x: Tensor) -> Tensor:
    """x as native code reads it: contiguous, the negative bit resolved, entries where their size says."""
    # Most tensors need nothing done, and a torch call costs as much as a small product.
    if x.is_contiguous() and not x.is_neg() and is_aligned(x):
        return x
    x = x.detach().resolve_neg().contiguous()
    return x if is_aligned(x) else x.clone()


def is_aligned(x: Tensor) -> bool:
    """Whether entries stand at multiples of their size, which bytes of a file or a message need not."""
    address = x.data_ptr()
    return address % 16 == 0 or address % x.element_size() == 0  # one torch call for most


def sizes(structure: list[Tensor]) -> tuple[int, int]:
    """(out, in)"""
    return structure[0].numel() - 1, structure[3].numel() - 1


def tensors_of(structure: CSR | list[Tensor]) -> list[Tensor]:
    """A structure as custom ops take it."""
    return structure.tensors if isinstance(structure, CSR) else structure


def native_structure(structure: CSR | list[Tensor], transposed: bool = False) -> NativeForm:
    """What native code takes of a structure, or of its transpose."""
    if isinstance(structure, CSR):
        return structure.native[transposed]
    return native_form(structure, transposed)


def native_order(structure: CSR | list[Tensor]) -> int:
    """The address of the permutation that brings values into the order of the transpose."""
    return structure.native_order if isinstance(structure, CSR) else structure[6].data_ptr()


def implementation(op: str, x: Tensor, csr: CSR) -> Callable[..., Any]:
    """The function that dispatch chooses for `op` on x and `csr`, which remembers it: choosing takes as long
    as a small product, and on the CPU nothing but a force changes it."""
    key = op, x.dtype, dispatch.forced_backend(op)
    if (found := csr.serving.get(key)) is None:
        route = dispatch.select(dispatch.Call(op, x.device.type, x.dtype, csr.density))
        found = dispatch.load(route)
        if x.device.type == "cpu":
            csr.serving[key] = found
    return found


def cuda_places(structure: CSR | list[Tensor], transposed: bool = False) -> tuple[int, ...]:
    """Addresses and sizes of a structure, or of its transpose, as csrc/bindings_cuda.cpp takes them."""
    structure = tensors_of(structure)
    n_out, n_in = sizes(structure)
    offsets, columns = structure[3:5] if transposed else structure[:2]
    rows, cols = (n_in, n_out) if transposed else (n_out, n_in)
    return offsets.data_ptr(), columns.data_ptr(), rows, cols, columns.numel()


def call_of_tensors(op: str, x: Tensor, structure: list[Tensor]) -> dispatch.Call:
    """`call_of` where only the structure's tensors are at hand."""
    total = math.prod(sizes(structure))
    return dispatch.Call(op, x.device.type, x.dtype, structure[1].numel() / total if total else 1.0)
