"""What autocast does to the operands of the masked and threshold layers: what it does to torch's own."""

from __future__ import annotations

import torch
from torch import Tensor

# Asked once: torch.compile of torch 2.11 cannot trace the question.
DEVICES = frozenset(
    device
    for device in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia")
    if torch.amp.is_autocast_available(device)
)


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands as `F.linear` and `F.conv2d` would see them; float64 stays."""
    device = x.device.type
    if device not in DEVICES or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def lower(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return lower(x), lower(weight), bias if bias is None else lower(bias)
