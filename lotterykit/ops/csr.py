"""`CSR`: the static structure of a frozen mask, with that of its transpose, checked once and for all."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from lotterykit.errors import ArgumentError
from lotterykit.ops.native_form import native_form, segments

MOST = 2**31 - 1  # indices and offsets are int32: half the traffic of int64
TENSORS = (
    "row_offsets",
    "columns",
    "row_segments",
    "column_offsets",
    "rows",
    "column_segments",
    "permutation",
)


class CSR:
    """The kept places of a mask `[out, in]`, row by row; what `spmm` and `sddmm` compute on.

    `row_offsets`: int32 `[out + 1]`; `columns`: int32 `[nnz]`, rising within a row. The transpose:
    `column_offsets` `[in + 1]`, `rows` `[nnz]` and `permutation` `[nnz]`: its value k is value
    permutation[k] of the CSR order. The tensors are copies and must not be written to.

    Raises `ArgumentError`, naming row and index, for anything but contiguous 1-D int32 or int64 tensors on
    one device that describe such a structure with fewer than 2**31 places.

    >>> CSR.from_mask(torch.tensor([[True, False], [True, True]])).columns.tolist()
    [0, 0, 1]
    """

    def __init__(self, row_offsets: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.shape = _checked_shape(shape)
        _check_indices("row_offsets", row_offsets)
        _check_indices("columns", columns)
        if row_offsets.device != columns.device:
            raise ArgumentError(
                "row_offsets and columns must be on one device, "
                f"got {row_offsets.device} and {columns.device}"
            )
        if row_offsets.is_meta:
            raise ArgumentError("row_offsets and columns must hold data, got tensors on meta")
        _check_offsets(row_offsets, columns.numel(), self.shape)
        with torch.inference_mode(False):  # tensors made in inference mode have no version to watch
            self.row_offsets = row_offsets.detach().to(torch.int32, copy=True)
            rows = _rows_of(self.row_offsets, columns.numel())
            _check_columns(self.row_offsets, rows, columns, self.shape[1])
            self.columns = columns.detach().to(torch.int32, copy=True)
            self._transpose(rows)
        self._tensors: list[Tensor] = [getattr(self, name) for name in TENSORS]
        self._versions = [t._version for t in self._tensors]
        self._density = self.nnz / (self.shape[0] * self.shape[1]) if 0 not in self.shape else 1.0
        # Aliases: what `native` points to stays, even where somebody gives a tensor other data.
        self._aliases = [t.detach() for t in self._tensors]
        self.native = native_form(self._aliases, False), native_form(self._aliases, True)
        self.native_order = self._aliases[6].data_ptr()
        self.serving: dict[object, Callable[..., Any]] = {}  # see operands.implementation
        _known[self.row_offsets] = _Known(weakref.ref(self))

    @classmethod
    def from_mask(cls, mask: Tensor) -> CSR:
        """The structure of a bool mask `[out, in]`, True = kept."""
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.dtype != torch.bool:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentError(f"a mask must be a bool tensor [out, in], got {got}")
        if mask.layout is not torch.strided or mask.is_meta:
            raise ArgumentError(f"a mask must be dense and hold data, got {mask.layout} on {mask.device}")
        rows, columns = mask.nonzero(as_tuple=True)
        if columns.numel() > MOST:
            raise ArgumentError(f"a CSR holds fewer than 2**31 kept weights, got {columns.numel()}")
        offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(torch.bincount(rows, minlength=mask.shape[0]), 0, out=offsets[1:])
        return cls(offsets, columns.contiguous(), (mask.shape[0], mask.shape[1]))

    @property
    def nnz(self) -> int:
        """Kept weights."""
        return self.columns.numel()

    @property
    def density(self) -> float:
        """Kept / total; 1 for an empty mask."""
        return self._density

    @property
    def device(self) -> torch.device:
        return self.columns.device

    @property
    def tensors(self) -> list[Tensor]:
        """What the custom ops take: a structure as a list of tensors, always in this order."""
        return list(self._tensors)

    def mask(self) -> Tensor:
        """The bool mask `[out, in]`."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.row_of_each(), self.columns.long()] = True
        return mask

    def row_of_each(self) -> Tensor:
        """The row of every kept place, int64 `[nnz]`."""
        return _rows_of(self.row_offsets, self.nnz)

    def gather(self, weight: Tensor) -> Tensor:
        """The kept entries `[nnz]` of a dense `[out, in]`; differentiable."""
        if tuple(weight.shape) != self.shape:
            raise ArgumentError(f"weight must be {self.shape}, got {tuple(weight.shape)}")
        return weight[self.row_of_each(), self.columns.long()]

    def scatter(self, values: Tensor) -> Tensor:
        """The dense `[out, in]` of values `[nnz]`, 0 where pruned; differentiable."""
        dense = values.new_zeros(self.shape)
        return dense.index_put((self.row_of_each(), self.columns.long()), values)

    def to(self, device: torch.device | str) -> CSR:
        """The structure on another device."""
        if torch.device(device) == self.device:
            return self
        return CSR(self.row_offsets.to(device), self.columns.to(device), self.shape)

    def check_unchanged(self) -> None:
        """Raises `ArgumentError` where a tensor was written to: native code would read anywhere."""
        if [t._version for t in self._tensors] != self._versions:
            raise ArgumentError(
                "a tensor of this CSR was changed in place; structures are static: make another"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return CSR, (self.row_offsets, self.columns, self.shape)

    def __repr__(self) -> str:
        return f"CSR({self.shape[0]}x{self.shape[1]}, nnz={self.nnz}, device={self.device})"

    def _transpose(self, rows: Tensor) -> None:
        n_out, n_in = self.shape
        columns = self.columns.long()
        self.permutation = columns.argsort(stable=True).int()
        self.rows = rows[self.permutation.long()].int()
        self.column_offsets = torch.zeros(n_in + 1, dtype=torch.int32, device=self.device)
        self.column_offsets[1:] = torch.bincount(columns, minlength=n_in).cumsum(0)
        self.row_segments = segments(rows, columns, self.row_offsets, n_out, n_in)
        turned = columns[self.permutation.long()], self.rows.long()
        self.column_segments = segments(*turned, self.column_offsets, n_in, n_out)


class _Known(NamedTuple):
    """A CSR, and the tensors that stand for it with their versions: its own, or others that hold the same."""

    csr: Callable[[], CSR | None]
    tensors: list[TensorWeakRef] | None = None  # None: its own
    versions: list[int] | None = None


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # row_offsets -> _Known


def csr_of(op: str, structure: Sequence[Tensor]) -> CSR:
    """The CSR that `structure`, as a custom op receives it, stands for.

    Its `tensors` are known by identity, at the cost of a few comparisons; others are checked whole, once.
    Raises `ArgumentError`, naming row and index, where they are no structure or were written to.
    """
    if len(structure) != len(TENSORS):
        raise ArgumentError(
            f"{op}: structure must be the {len(TENSORS)} tensors of a CSR, got {len(structure)}"
        )
    known = _known.get(structure[0])
    csr = None if known is None else known.csr()
    if csr is not None and known.tensors is None:
        if all(map(operator.is_, csr._tensors, structure)):
            csr.check_unchanged()
            return csr
    elif (
        csr is not None
        and all(ref() is t for ref, t in zip(known.tensors, structure, strict=True))
        and known.versions == [t._version for t in structure]
    ):
        return csr
    csr = _checked_structure(op, structure)
    if not any(t.is_inference() for t in structure):  # those have no version to watch
        versions = [t._version for t in structure]
        _known[structure[0]] = _Known(lambda: csr, [TensorWeakRef(t) for t in structure], versions)
    return csr


def _checked_structure(op: str, structure: Sequence[Tensor]) -> CSR:
    for name, tensor in zip(TENSORS, structure, strict=True):
        if tensor.dtype != torch.int32 or tensor.layout is not torch.strided:
            raise ArgumentError(
                f"{op}: {name} must be a dense int32 tensor, got {tensor.layout}, {tensor.dtype}"
            )
    csr = CSR(structure[0], structure[1], (structure[0].numel() - 1, structure[3].numel() - 1))
    for name, got, want in zip(TENSORS, structure, csr.tensors, strict=True):
        if got.shape != want.shape or got.device != want.device:
            raise ArgumentError(
                f"{op}: {name} must be {list(want.shape)} on {want.device} by row_offsets and columns, "
                f"got {list(got.shape)} on {got.device}"
            )
        if (at := _first((got != want).flatten())) is not None:
            raise ArgumentError(
                f"{op}: {name}[{at}] must be {int(want.flatten()[at])} by row_offsets and columns, "
                f"got {int(got.flatten()[at])}"
            )
    return csr


def _rows_of(offsets: Tensor, nnz: int) -> Tensor:
    counts = offsets.diff().long()
    return torch.repeat_interleave(
        torch.arange(counts.numel(), device=offsets.device), counts, output_size=nnz
    )


def _checked_shape(shape: object) -> tuple[int, int]:
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < MOST for n in shape)
    ):
        raise ArgumentError(f"shape must be two ints (out, in) in [0, 2**31 - 1), got {shape!r}")
    return shape[0], shape[1]


def _check_indices(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise ArgumentError(f"{name} must be a dense tensor, got {tensor.layout}")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.dim() != 1:
        raise ArgumentError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} must be contiguous, got stride {tensor.stride(0)}")


def _first(bad: Tensor) -> int | None:
    """The index of the first True."""
    return int(bad.int().argmax()) if bool(bad.any()) else None


def _check_offsets(offsets: Tensor, nnz: int, shape: tuple[int, int]) -> None:
    n_out, n_in = shape
    if nnz > MOST:
        raise ArgumentError(f"a CSR holds fewer than 2**31 kept weights, got {nnz} columns")
    if nnz > n_out * n_in:
        raise ArgumentError(f"{nnz} columns do not fit into {n_out} x {n_in} = {n_out * n_in} places")
    if offsets.numel() != n_out + 1:
        raise ArgumentError(f"row_offsets must hold {n_out} + 1 offsets, got {offsets.numel()}")
    if (row := _first((offsets < 0) | (offsets > nnz))) is not None:
        raise ArgumentError(f"row_offsets[{row}] = {int(offsets[row])}, lies outside [0, {nnz}], the columns")
    if (row := _first(offsets[1:] < offsets[:-1])) is not None:
        raise ArgumentError(
            f"row_offsets fall in row {row}: from {int(offsets[row])} at index {row} "
            f"to {int(offsets[row + 1])} at index {row + 1}"
        )
    if int(offsets[0]) != 0:
        raise ArgumentError(f"row_offsets[0] must be 0, got {int(offsets[0])}: row 0 begins there")
    if int(offsets[-1]) != nnz:
        raise ArgumentError(
            f"row_offsets[{n_out}] must be {nnz}, the number of columns, got {int(offsets[-1])}"
        )
    if (row := _first(offsets.diff() > n_in)) is not None:
        raise ArgumentError(
            f"row {row} holds {int(offsets.diff()[row])} places, but there are {n_in} columns"
        )


def _check_columns(offsets: Tensor, rows: Tensor, columns: Tensor, n_in: int) -> None:
    if (at := _first((columns < 0) | (columns >= n_in))) is not None:
        raise ArgumentError(
            f"columns[{at}] = {int(columns[at])} in row {int(rows[at])} lies outside [0, {n_in})"
        )
    falling = (columns[1:] <= columns[:-1]) & (rows[1:] == rows[:-1])
    if (at := _first(falling)) is not None:
        first, second, row = int(columns[at]), int(columns[at + 1]), int(rows[at])
        what = "twice" if first == second else f"before column {second}, at index {at + 1}"
        raise ArgumentError(
            f"columns must rise within a row: row {row} names column {first}, at index {at}, {what}"
        )
