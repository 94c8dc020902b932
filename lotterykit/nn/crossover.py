"""What `format="auto"` chooses: where the sparse form of a layer was measured to be the faster one."""

from __future__ import annotations

import torch
from torch import nn

from lotterykit.ops.crossovers import CROSSOVERS, crossovers_of, unmeasured
from lotterykit.ops.dispatch import missing

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
}


def choose(
    plain: type[nn.Module], weights: int, density: float | None, device: str, dtype: torch.dtype
) -> tuple[str, str]:
    """("masked" or "sparse", why) for a layer of a torch class with that many weights and kept / total."""
    kind = KINDS[plain]
    if density is None:
        return "masked", "the mask cannot be counted now"
    if device not in {row.device for row in CROSSOVERS} or (
        device == "cpu" and dtype not in (torch.float32, torch.float64)
    ):
        name = str(dtype).removeprefix("torch.")
        return "masked", f"the sparse kernels take float32 and float64 on cpu, not {name} on {device}"
    if (reason := missing(device)) is not None:  # backends have the names of their devices
        return "masked", reason
    rows = crossovers_of(kind, device, dtype)
    if device == "cpu" and not rows:
        return "masked", f"no measurement of sparse {kind} layers"
    size = f"{kind} of {weights} weights at density {density:.4g}"
    measured = [(row, row.density) for row in rows if row.density is not None]
    if not measured:
        return "masked", unmeasured(kind, device, dtype)
    fitting = [(row, most) for row, most in measured if weights >= row.weights]
    if not fitting:
        least = min(row.weights for row, _ in measured)
        return "masked", f"{size}, sparse is measured faster from {least} weights on"
    for row, most in fitting:
        if density <= most:
            return "sparse", f"{size}, measured faster up to {most:g} ({row.evidence})"
    return "masked", f"{size}, sparse is measured faster up to {max(most for _, most in fitting):g}"
