"""What `format="auto"` chooses: where the sparse form of a layer was measured to be the faster one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from lotterykit.ops.dispatch import missing


class Crossover(NamedTuple):
    """Layers of `kind` with at least `weights` weights, kept or not, are sparse up to this `density`."""

    kind: str
    weights: int
    density: float
    evidence: str


# Forward + backward of a whole layer: sparse beats masked and plain at each batch and image size measured.
# Smaller linear layers are overhead, where only a native training loop helps. Rows are tried in order.
EVIDENCE = "benchmarks/results/x86_64-avx512-layers.json"
CROSSOVERS: tuple[Crossover, ...] = (
    Crossover("linear", 256 * 256, 0.3, EVIDENCE),
    Crossover("conv2d", 16 * 16 * 9, 0.1, EVIDENCE),
)
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
    if device != "cpu" or dtype not in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        return "masked", f"the sparse kernels take float32 and float64 on cpu, not {name} on {device}"
    if (reason := missing("cpu")) is not None:
        return "masked", reason
    rows = [row for row in CROSSOVERS if row.kind == kind]
    if not rows:
        return "masked", f"no measurement of sparse {kind} layers"
    size = f"{kind} of {weights} weights at density {density:.4g}"
    fitting = [row for row in rows if weights >= row.weights]
    if not fitting:
        least = min(row.weights for row in rows)
        return "masked", f"{size}, sparse is measured faster from {least} weights on"
    for row in fitting:
        if density <= row.density:
            return "sparse", f"{size}, measured faster up to {row.density:g} ({row.evidence})"
    return "masked", f"{size}, sparse is measured faster up to {max(row.density for row in fitting):g}"
