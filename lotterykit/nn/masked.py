"""Masked layers: `nn.Linear` and `nn.Conv*d` with a bool buffer `weight_mask`, True where a weight is kept.

Pruned entries of `weight` may hold anything; the forward pass treats them as absent. A layer made with
`format="sparse"` holds kept weights only: it is of the subclasses of `lotterykit.nn.sparse`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.ops.formats import known_density
from lotterykit.ops.masked_conv2d import masked_conv1d, masked_conv2d
from lotterykit.ops.masked_linear import masked_linear

FORMATS = ("masked", "sparse", "auto")


def check_format(format: object) -> str:
    """`format` as one of FORMATS; raises `ArgumentError` otherwise."""
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    return str(format)


def exports_to_onnx() -> bool:
    """Whether `torch.onnx` is tracing: it knows torch's operators only."""
    tracing = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return tracing and torch.onnx.is_in_onnx_export()


class Masked:
    """What the masked layers share, mixed in before their `torch.nn` base: buffers, loading, repr.

    `format` is "masked" or "sparse"; `format_reason` says why, where `format="auto"` chose it, else None.
    """

    format = "masked"
    format_reason: str | None = None
    weight: Tensor
    bias: Any
    weight_mask: Tensor
    bias_mask: Tensor | None

    def add_masks_(self, *, bias_mask: bool = False) -> None:
        """Register an all-True `weight_mask`, and `bias_mask` if asked for (else None)."""
        if bias_mask and self.bias is None:
            raise ArgumentError(f"bias_mask needs a layer with a bias, got {type(self).__name__}(bias=False)")
        self.register_buffer("weight_mask", torch.ones_like(self.weight, dtype=torch.bool))  # type: ignore[attr-defined]
        self.register_buffer("bias_mask", None)  # type: ignore[attr-defined]
        if bias_mask:
            self.add_bias_mask_()

    def add_bias_mask_(self) -> None:
        """Give the layer an all-True `bias_mask`, if it has a bias and no mask of it yet."""
        if self.bias is not None and self.bias_mask is None:
            self.bias_mask = torch.ones_like(self.bias, dtype=torch.bool)

    def kept_weight(self) -> Tensor:
        """`weight` with pruned entries 0, whatever they hold; differentiable."""
        return torch.where(self.weight_mask, self.weight, 0.0)

    def kept_bias(self) -> Tensor | None:
        """`bias` with pruned entries 0 where there is a `bias_mask`; differentiable."""
        bias, mask = self.bias, self.bias_mask  # each access costs a module as much as a small tensor's
        return bias if bias is None or mask is None else torch.where(mask, bias, 0.0)

    def density(self) -> float | None:
        """Kept / total, 1 for an empty weight; None where the mask cannot be read now."""
        return known_density(self.weight_mask)

    def extra_repr(self) -> str:
        density = self.density()
        shown = "unknown" if density is None else f"{density:.4g}"
        why = "" if self.format_reason is None else f", auto: {self.format_reason}"
        return f"{super().extra_repr()}, density={shown}{why}"  # type: ignore[misc]

    def choose_format_(self, format: str) -> None:
        """Give a layer that was just made, every weight kept, the format asked for."""
        if check_format(format) != "masked":
            from lotterykit.nn.convert import convert_  # which knows these classes

            convert_(self, format=format)  # type: ignore[type-var]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts plain checkpoints (the layer's own masks stay), and those of `torch.nn.utils.prune` and
        of parametrizations that hold a `mask`."""
        self.adopt_keys_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def adopt_keys_(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give a checkpoint this layer's keys, and this layer the checkpoint's `bias_mask` if it has one."""
        _adopt_foreign_keys(state_dict, prefix)
        if f"{prefix}bias_mask" in state_dict:
            self.add_bias_mask_()
        for name in ("weight_mask", "bias_mask"):
            own = self._buffers.get(name)  # type: ignore[attr-defined]
            if (key := prefix + name) in state_dict:
                state_dict[key] = state_dict[key] != 0
            elif own is not None:
                state_dict[key] = own


def _adopt_foreign_keys(state_dict: dict[str, Any], prefix: str) -> None:
    """Rename `weight_orig` and `parametrizations.weight.original` to `weight`, collect masks; bias alike."""
    for kind in ("weight", "bias"):
        for foreign in (f"{prefix}{kind}_orig", f"{prefix}parametrizations.{kind}.original"):
            if foreign in state_dict:
                state_dict[f"{prefix}{kind}"] = state_dict.pop(foreign)
        start = f"{prefix}parametrizations.{kind}."
        found = [key for key in state_dict if key.startswith(start) and key.endswith(".mask")]
        masks = [state_dict.pop(key) != 0 for key in found]
        if masks:
            state_dict[f"{prefix}{kind}_mask"] = torch.stack(masks).all(0)


class MaskedLinear(Masked, nn.Linear):
    """`nn.Linear` that computes with its kept weights only: y = x (W where weight_mask)^T + b.

    weight, weight_mask: `[out_features, in_features]`; `bias_mask`: `[out_features]` if asked for, else None.
    `format="sparse"` makes a `SparseLinear`, `"auto"` one or the other; every weight is kept at first, so
    most layers get their format from `convert_`, with their mask.

    >>> layer = MaskedLinear(4, 2)
    >>> layer.weight_mask[0] = False
    >>> layer
    MaskedLinear(in_features=4, out_features=2, bias=True, density=0.5)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str = "masked",
        bias_mask: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_format(format)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.add_masks_(bias_mask=bias_mask)
        self.choose_format_(format)

    def forward(self, input: Tensor) -> Tensor:
        if exports_to_onnx():
            return F.linear(input, self.kept_weight(), self.kept_bias())
        return masked_linear(input, self.weight, self.weight_mask, self.kept_bias())


class _MaskedConv(Masked):
    """The convolutions: the arguments of their `torch.nn` base, `format` and `bias_mask`."""

    def __init__(self, *args: Any, format: str = "masked", bias_mask: bool = False, **kwargs: Any) -> None:
        check_format(format)
        super().__init__(*args, **kwargs)
        self.add_masks_(bias_mask=bias_mask)
        self.choose_format_(format)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kept_weight(), self.kept_bias())  # type: ignore[attr-defined]

    def padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, padded where zeros are not what pads it, and the zeros that are left to add."""
        layer: Any = self
        if layer.padding_mode == "zeros":
            return input, layer.padding
        return F.pad(input, layer._reversed_padding_repeated_twice, layer.padding_mode), None


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """`nn.Conv1d` that computes with its kept weights only; `weight_mask` has the shape of `weight`."""

    def forward(self, input: Tensor) -> Tensor:
        if exports_to_onnx():
            return super().forward(input)
        x, around = self.padded(input)
        return masked_conv1d(
            x,
            self.weight,
            self.weight_mask,
            self.kept_bias(),
            stride=self.stride[0],
            padding=around if isinstance(around, str) else around[0] if around else 0,
            dilation=self.dilation[0],
            groups=self.groups,
        )


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """`nn.Conv2d` that computes with its kept weights only; `weight_mask` has the shape of `weight`."""

    def forward(self, input: Tensor) -> Tensor:
        if exports_to_onnx():
            return super().forward(input)
        x, around = self.padded(input)
        return masked_conv2d(
            x,
            self.weight,
            self.weight_mask,
            self.kept_bias(),
            stride=self.stride,  # type: ignore[arg-type]
            padding=around or 0,
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
        )


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """`nn.Conv3d` that computes with its kept weights only; `weight_mask` has the shape of `weight`.

    There is no sparse form of it: `format="sparse"` raises `ArgumentError`, "auto" keeps it masked."""


# plain layer -> its masked twin
MASKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
