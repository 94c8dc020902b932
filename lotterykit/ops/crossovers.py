"""Up to which density a sparse layer is the faster one, as data: what `format="auto"` and `explain` read."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lotterykit.ops.dispatch import tf32_allowed


class Crossover(NamedTuple):
    """Layers of `kind` with at least `weights` weights, kept or not, are sparse up to this `density` on
    `device` in these `precisions`. `density` and `evidence` are None where that is not yet measured."""

    kind: str
    weights: int
    density: float | None
    evidence: str | None
    device: str = "cpu"
    precisions: tuple[str, ...] = ("float32", "float64")


# Forward + backward of a whole layer: sparse beats masked and plain at each batch and image size measured.
# Smaller linear layers are overhead, where only a native training loop helps. Rows are tried in order. Those
# of a GPU get their numbers from the rows that `make gpu-check` prints and the file that it writes.
EVIDENCE = "benchmarks/results/x86_64-avx512-layers.json"
CROSSOVERS: tuple[Crossover, ...] = (
    Crossover("linear", 256 * 256, 0.3, EVIDENCE),
    Crossover("conv2d", 16 * 16 * 9, 0.1, EVIDENCE),
    Crossover("linear", 1024 * 1024, None, None, "cuda", ("bfloat16",)),
    Crossover("linear", 1024 * 1024, None, None, "cuda", ("tf32",)),
    Crossover("linear", 1024 * 1024, None, None, "cuda", ("float32",)),
)
# op -> the kind of layer that it is the product of
KINDS = {
    "masked_linear": "linear",
    "spmm": "linear",
    "masked_conv2d": "conv2d",
    "sparse_conv2d": "conv2d",
}


def precision_of(device: str, dtype: torch.dtype) -> str:
    """The name of a dtype, "tf32" for float32 on a GPU whose products torch may compute in it."""
    if device == "cuda" and dtype == torch.float32 and tf32_allowed():
        return "tf32"
    return str(dtype).removeprefix("torch.")


def crossovers_of(kind: str, device: str, dtype: torch.dtype) -> list[Crossover]:
    """The rows for a kind of layer, measured or not."""
    precision = precision_of(device, dtype)
    return [
        row for row in CROSSOVERS if (row.kind, row.device) == (kind, device) and precision in row.precisions
    ]


def unmeasured(kind: str, device: str, dtype: torch.dtype) -> str:
    """The reason to keep a layer masked where no row says more."""
    where = f"in {precision_of(device, dtype)} on {device}"
    return f"up to which density sparse {kind} layers are faster {where} is not yet measured"


def told(op: str, device: str, dtype: torch.dtype) -> str | None:
    """What `explain` says of an op that a layer could go without, in another format; None for other ops."""
    if (kind := KINDS.get(op)) is None:
        return None
    rows = [row for row in crossovers_of(kind, device, dtype) if row.density is not None]
    if not rows:
        return f"masked; {unmeasured(kind, device, dtype)}"
    bands = [
        f"sparse from {row.weights} weights on up to density {row.density:g} ({row.evidence})" for row in rows
    ]
    return ", ".join(bands)
