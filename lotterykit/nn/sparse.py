"""Sparse layers: the masked layers of a frozen mask, which hold, train and save their kept weights only.

The parameter is `values` `[nnz]`, the structure a static `CSR`. `pack_` and `unpack_` turn a masked layer
into one and back: its parameter stays the same object, so an optimizer goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lotterykit.errors import ArgumentError
from lotterykit.nn.masked import Masked, MaskedConv1d, MaskedConv2d, MaskedLinear, exports_to_onnx
from lotterykit.nn.readonly import read_only
from lotterykit.ops.csr import CSR
from lotterykit.ops.sparse_conv2d import sparse_conv2d
from lotterykit.ops.spmm import spmm


class Sparse(Masked):
    """What the sparse layers share: the dense views of `values` and `csr`, moving, saving and loading.

    `values`: `[nnz]`, the kept weights row by row; `csr`: their places in the weight flattened to
    `[out, in * kernel]`. `weight` and `weight_mask` are built at each access, in the dense shape, and are
    read-only: `weight` is differentiable in `values`; writing to either raises `ArgumentError`. Assigning a
    whole `weight_mask` re-packs the layer: weights kept anew are 0. state_dict holds the dense `weight` and
    `weight_mask`, so checkpoints go to and come from plain and masked layers; loading another mask re-packs.
    An optimizer's state fits a re-packed layer no more: load its state too, or make another.
    """

    format = "sparse"
    values: nn.Parameter
    csr: CSR

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The dense weight's shape: `[out, in]`, or `[out, in / groups, *kernel]`."""
        kernel: tuple[int, ...] = getattr(self, "kernel_size", ())
        rows, columns = self.csr.shape
        return rows, columns // math.prod(kernel), *kernel

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return read_only(self.kept_weight())

    @weight.setter
    def weight(self, value: object) -> None:
        raise ArgumentError("weight of a sparse layer is built when read: write to values, or load")

    @property
    def weight_mask(self) -> Tensor:  # type: ignore[override]
        return read_only(self.csr.mask().view(self.weight_shape))

    @weight_mask.setter
    def weight_mask(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != self.weight_shape:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentError(f"weight_mask must be bool {list(self.weight_shape)}, got {got}")
        restructure_(self, CSR.from_mask(mask.detach().flatten(1).to(self.csr.device)))

    def kept_weight(self) -> Tensor:
        if self.values.is_meta:
            return self.values.new_empty(self.weight_shape)
        csr, order = self.csr, self.csr.permutation.long()
        # `csr.scatter` through the transpose, which stores each place's row: ONNX has no repeat_interleave.
        places = csr.rows.long() * csr.shape[1] + csr.columns.long()[order]
        dense = self.values.new_zeros(csr.shape[0] * csr.shape[1])
        return dense.index_put((places,), self.values[order]).view(self.weight_shape)

    def density(self) -> float:
        return self.csr.density

    def reset_parameters(self) -> None:
        """Draw the dense layer's initialisation and keep what the mask keeps."""
        layer = cast(nn.Linear, self)
        unpack_(layer)
        layer.reset_parameters()  # now the dense layer's
        pack_(layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sparse:
        super()._apply(fn, recurse)  # type: ignore[misc]
        if not self.values.is_meta:  # the structure stays where it is, for `to_empty` and assigned weights
            self.csr = self.csr.to(self.values.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.kept_weight()
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        del destination[f"{prefix}values"]
        destination[f"{prefix}weight_mask"] = self.csr.mask().view(self.weight_shape)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.adopt_keys_(state_dict, prefix)
        weight = state_dict.pop(f"{prefix}weight", None)
        mask = state_dict.pop(f"{prefix}weight_mask", None)
        errors = [
            f"size mismatch for {prefix}{name}: copying a param with shape {tensor.shape} from checkpoint, "
            f"the shape in current model is {torch.Size(self.weight_shape)}."
            for name, tensor in (("weight", weight), ("weight_mask", mask))
            if tensor is not None and tuple(tensor.shape) != self.weight_shape
        ]
        error_msgs += errors
        if errors:  # then neither is taken
            weight, mask = self.kept_weight(), None
        if mask is not None:
            self.weight_mask = mask
        if weight is not None:
            dense = weight.detach().to(self.csr.device).flatten(1)
            state_dict[f"{prefix}values"] = self.csr.gather(dense)
        missing: list[str] = []
        super(Masked, self)._load_from_state_dict(  # type: ignore[misc]
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        missing_keys += [f"{prefix}weight" if key == f"{prefix}values" else key for key in missing]


class SparseLinear(Sparse, MaskedLinear):
    """`MaskedLinear` that holds kept weights only: y = x W^T + b by `lotterykit.ops.spmm`.

    Autocast does not lower it: its output has the dtype of `values`.

    >>> MaskedLinear(4, 2, format="sparse")
    SparseLinear(in_features=4, out_features=2, bias=True, density=1)
    """

    def forward(self, input: Tensor) -> Tensor:
        if exports_to_onnx():
            return F.linear(input, self.kept_weight(), self.kept_bias())
        return spmm(input, self.values, self.csr, self.kept_bias())


class _SparseConv(Sparse):
    """The convolutions of one and two dimensions, by `lotterykit.ops.sparse_conv2d`."""

    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: Any
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor) -> Tensor:
        if exports_to_onnx():
            return self._conv_forward(input, self.kept_weight(), self.kept_bias())  # type: ignore[attr-defined]
        dimensions = len(self.kernel_size)
        if input.dim() not in (dimensions + 1, dimensions + 2):
            raise ArgumentError(
                f"{type(self).__name__}: input must have {dimensions + 1} or {dimensions + 2} dimensions, "
                f"got shape {tuple(input.shape)}"
            )
        x, padding = self._padded(input)
        single = x.dim() == dimensions + 1
        if single:
            x = x.unsqueeze(0)
        if dimensions == 1:
            x = x.unsqueeze(2)
        y = sparse_conv2d(
            x,
            self.values,
            self.csr,
            self.kept_bias(),
            kernel_size=_pair(self.kernel_size, 1),
            stride=_pair(self.stride, 1),
            padding=_pair(padding, 0),
            dilation=_pair(self.dilation, 1),
            groups=self.groups,
        )
        if dimensions == 1:
            y = y.squeeze(2)
        return y.squeeze(0) if single else y

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x with the padding that the op does not know, and the padding left for it."""
        none = (0,) * len(self.kernel_size)
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), none
        if not isinstance(self.padding, str):
            return x, self.padding
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if self.padding == "valid":
            return x, none
        if all(n % 2 == 0 for n in total):
            return x, tuple(n // 2 for n in total)
        return F.pad(x, self._reversed_padding_repeated_twice), none


class SparseConv1d(_SparseConv, MaskedConv1d):
    """`MaskedConv1d` that holds kept weights only: a convolution of images of height 1."""


class SparseConv2d(_SparseConv, MaskedConv2d):
    """`MaskedConv2d` that holds kept weights only."""


# masked layer -> its sparse twin
SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    MaskedLinear: SparseLinear,
    MaskedConv1d: SparseConv1d,
    MaskedConv2d: SparseConv2d,
}
_MASKED = {sparse: masked for masked, sparse in SPARSE.items()}


def pack_(layer: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Turn a masked layer into a sparse one, in place; `optimizer` keeps its state of the kept weights."""
    masked = cast(Masked, layer)
    csr = CSR.from_mask(masked.weight_mask.flatten(1))
    parameter = _rename_(layer, "weight", "values")
    del masked.weight_mask
    layer.__class__ = SPARSE[type(layer)]
    cast(Sparse, layer).csr = csr
    _recast_(parameter, lambda dense: csr.gather(dense.flatten(1)), optimizer)


def unpack_(layer: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Turn a sparse layer into a masked one, in place: what was pruned is 0, in `optimizer`'s state too."""
    sparse = cast(Sparse, layer)
    csr, shape, mask = sparse.csr, sparse.weight_shape, sparse.csr.mask().view(sparse.weight_shape)
    bias_mask = layer._buffers.pop("bias_mask")
    del sparse.csr
    layer.__class__ = _MASKED[type(layer)]
    layer.register_buffer("weight_mask", mask)
    layer.register_buffer("bias_mask", bias_mask)
    parameter = _rename_(layer, "values", "weight")
    _recast_(parameter, lambda values: csr.scatter(values).view(shape), optimizer)


def restructure_(layer: Sparse, csr: CSR) -> None:
    """Give a sparse layer another structure, where it differs; weights kept anew are 0."""
    before = layer.csr
    if torch.equal(before.row_offsets, csr.row_offsets) and torch.equal(before.columns, csr.columns):
        return
    layer.csr = csr
    if layer.values.is_meta:
        layer.values.data = layer.values.new_empty(csr.nnz)
    else:
        _recast_(layer.values, lambda values: csr.gather(before.scatter(values)), None)


def check_state(name: str, parameter: nn.Parameter, optimizer: Optimizer) -> None:
    """Raises `ArgumentError` where `optimizer` holds state of `parameter` that is not one number a weight."""
    for key, value in optimizer.state.get(parameter, {}).items():
        tensors = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(t, Tensor) and t.dim() and t.shape != parameter.shape for t in tensors):
            shapes = [list(t.shape) for t in tensors if isinstance(t, Tensor)]
            raise ArgumentError(
                f"{type(optimizer).__name__} holds {key!r} {shapes} of {name!r} {list(parameter.shape)}, "
                "but only one number a weight can be carried over: convert before the optimizer is made"
            )


def _rename_(layer: nn.Module, old: str, new: str) -> nn.Parameter:
    """The same parameter, at the same place in the layer's order, under another name."""
    items = list(layer._parameters.items())
    layer._parameters.clear()
    layer._parameters.update((new if name == old else name, p) for name, p in items)
    return cast(nn.Parameter, layer._parameters[new])


def _recast_(parameter: nn.Parameter, carry: Callable[[Tensor], Tensor], optimizer: Optimizer | None) -> None:
    """Put `carry` of a parameter, its gradient and optimizer state in their place; it stays the object."""
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    with torch.no_grad():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[key] = carry(value)
        gradient, parameter.grad = parameter.grad, None
        carried = carry(parameter.data).contiguous()
        # A graph of before that is still alive holds the node that accumulates this parameter's gradient,
        # with the shape of before; torch makes a new one only when the dtype changes.
        other = torch.float32 if parameter.dtype == torch.float16 else torch.float16
        parameter.data = carried.new_empty(0, dtype=other)
        parameter.data = carried
        if gradient is not None:
            parameter.grad = carry(gradient)


def _pair(sizes: tuple[int, ...], fill: int) -> tuple[int, int]:
    """(height, width); one size is a width, of images of height 1."""
    height, width = sizes if len(sizes) == 2 else (fill, sizes[0])
    return height, width
