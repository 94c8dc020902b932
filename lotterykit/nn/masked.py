"""Masked layers: `nn.Linear` and `nn.Conv*d` with a bool buffer `weight_mask`, True where a weight is kept.

Pruned entries of `weight` may hold anything; the forward pass treats them as absent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.ops.formats import known_density
from lotterykit.ops.masked_linear import masked_linear


class Masked:
    """What the masked layers share, mixed in before their `torch.nn` base: buffers, loading, repr."""

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
        if self.bias is None or self.bias_mask is None:
            return self.bias
        return torch.where(self.bias_mask, self.bias, 0.0)

    def extra_repr(self) -> str:
        density = known_density(self.weight_mask)
        shown = "unknown" if density is None else f"{density:.4g}"
        return f"{super().extra_repr()}, density={shown}"  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts plain checkpoints (the layer's own masks stay), and those of `torch.nn.utils.prune` and
        of parametrizations that hold a `mask`."""
        _adopt_foreign_keys(state_dict, prefix)
        for kind in ("weight", "bias"):
            key, own = f"{prefix}{kind}_mask", getattr(self, f"{kind}_mask")
            if key in state_dict:
                if kind == "bias":
                    self.add_bias_mask_()
                state_dict[key] = state_dict[key] != 0
            elif own is not None:
                state_dict[key] = own
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


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
        bias_mask: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.add_masks_(bias_mask=bias_mask)

    def forward(self, input: Tensor) -> Tensor:
        return masked_linear(input, self.weight, self.weight_mask, self.kept_bias())


class _MaskedConv(Masked):
    """The convolutions: the arguments of their `torch.nn` base, and `bias_mask`."""

    def __init__(self, *args: Any, bias_mask: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_masks_(bias_mask=bias_mask)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kept_weight(), self.kept_bias())  # type: ignore[attr-defined]


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """`nn.Conv1d` that computes with its kept weights only; `weight_mask` has the shape of `weight`."""


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """`nn.Conv2d` that computes with its kept weights only; `weight_mask` has the shape of `weight`."""


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """`nn.Conv3d` that computes with its kept weights only; `weight_mask` has the shape of `weight`."""


# plain layer -> its masked twin
MASKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
