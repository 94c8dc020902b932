"""The GPU goals of the sparse products, each against all its peers: G3 to G6."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.goals import line
from lotterykit.bench.timing import measure, rotations
from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.sddmm import sddmm
from lotterykit.ops.spmm import spmm

log = logging.getLogger(__name__)

# goal -> (what, file topic, row of the table, peers of which the fastest counts, ratio wanted)
GOALS: dict[str, tuple[str, str, str, tuple[str, ...], float]] = {
    "G3 bf16": ("sparse linear at density .01 against bf16 cuBLAS", "spmm", "bf16 0.01", ("dense",), 1.5),
    "G3 tf32": ("sparse linear at density .01 against TF32 cuBLAS", "spmm", "tf32 0.01", ("dense",), 2.5),
    "G4 bf16": ("the same against the best cuSPARSE", "spmm", "bf16 0.01", ("csr", "csr-columns"), 3.0),
    "G4 fp32": ("the same against the best cuSPARSE", "spmm", "tf32 0.01", ("csr", "csr-columns"), 3.0),
    "G5": ("sparse linear, density .001, 8192^3, bf16 cuBLAS", "spmm", "bf16 0.001", ("dense",), 6.0),
    "G6 bf16": ("masked dW at density .01, dense dW and mask", "sddmm", "bf16 0.01", ("dense-masked",), 1.5),
    "G6 tf32": ("masked dW at density .01, dense dW and mask", "sddmm", "tf32 0.01", ("dense-masked",), 1.5),
}
Report = Callable[[dict[str, Any]], None]
TYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}


@dataclass(frozen=True)
class Layer:
    """One input set: x `[batch, in]`, g `[batch, out]`, the dense weight with its mask, and W sparse."""

    x: Tensor
    g: Tensor
    weight: Tensor
    mask: Tensor
    csr: CSR
    values: Tensor
    torch_csr: Tensor


def layers(
    shape: tuple[int, int, int], density: float, dtype: torch.dtype, device: str
) -> list[tuple[Layer]]:
    """Sets of one structure that together exceed the cache."""
    batch, n_in, n_out = shape
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2**20
    mask = torch.rand(n_out, n_in, device=device) < density
    csr = CSR.from_mask(mask)
    made = []
    for _ in range(rotations(batch * n_in * dtype.itemsize, cache, most=4)):
        x, g = (torch.randn(batch, n, device=device).to(dtype) for n in (n_in, n_out))
        weight = torch.randn(n_out, n_in, device=device).to(dtype) * mask
        values = csr.gather(weight)
        matrix = torch.sparse_csr_tensor(csr.row_offsets, csr.columns, values, csr.shape)
        made.append((Layer(x, g, weight, mask, csr, values, matrix),))
    return made


def _ours(layer: Layer) -> Tensor:
    with use_backend("cuda" if layer.x.is_cuda else "auto"):
        return spmm(layer.x, layer.values, layer.csr)


def _our_dw(layer: Layer) -> Tensor:
    with use_backend("cuda" if layer.x.is_cuda else "auto"):
        return sddmm(layer.g, layer.x, layer.csr)


# torch chooses cuSPARSE's algorithm; y stays `[out, batch]`, which spares these peers a pass.
PRODUCTS: dict[str, Callable[[Layer], Tensor]] = {
    "ours": _ours,
    "dense": lambda layer: F.linear(layer.x, layer.weight),
    "dense-masked": lambda layer: F.linear(layer.x, layer.weight * layer.mask),
    "csr": lambda layer: layer.torch_csr @ layer.x.t(),
    "csr-columns": lambda layer: layer.torch_csr @ layer.x.t().contiguous(),
}
DW: dict[str, Callable[[Layer], Tensor]] = {
    "ours": _our_dw,
    "dense-masked": lambda layer: (layer.g.t() @ layer.x) * layer.mask,
}


def time_spmm(
    report: Report,
    *,
    shape: tuple[int, int, int] = (8192, 4096, 4096),
    square: int = 8192,
    device: str = "cuda",
    seconds: float = 0.4,
) -> None:
    """Device time of the forward product at density .01 in bf16 and TF32, and at .001 of a cube of `square`.

    `report` gets the whole table {row: {peer: timing}} after every new number.
    """
    table: dict[str, Any] = {}
    for row, size, density in (
        ("bf16 0.01", shape, 0.01),
        ("tf32 0.01", shape, 0.01),
        ("bf16 0.001", (square, square, square), 0.001),
    ):
        _time_row(
            table, row, layers(size, density, TYPES[row[:4]], device), PRODUCTS, report, device, seconds
        )


def time_sddmm(
    report: Report,
    *,
    shape: tuple[int, int, int] = (4096, 4096, 4096),
    device: str = "cuda",
    seconds: float = 0.4,
) -> None:
    """Device time of dW at the kept places, density .01, in bf16 and TF32."""
    table: dict[str, Any] = {}
    for name, dtype in TYPES.items():
        _time_row(table, f"{name} 0.01", layers(shape, 0.01, dtype, device), DW, report, device, seconds)


def _time_row(
    table: dict[str, Any],
    row: str,
    sets: list[tuple[Layer]],
    peers: dict[str, Callable[[Layer], Tensor]],
    report: Report,
    device: str,
    seconds: float,
) -> None:
    table[row] = {}
    for peer, function in peers.items():
        try:
            with fp32_precision("tf32"):
                timing = measure(function, sets, device=device, seconds=seconds, queued=True)
        except RuntimeError as error:
            if peer == "ours":
                raise
            log.warning("%s: %s does not run: %s", row, peer, error)
            continue
        table[row][peer] = {"us": timing.median, "device": timing.as_dict()}
        report(table)


def verdicts(topic: str, table: dict[str, Any]) -> list[str]:
    """One line a goal of this topic: reached, missed with its number, or not measured."""
    lines = []
    for goal, (what, of, row, peers, wanted) in GOALS.items():
        if of != topic:
            continue
        times = {peer: timing["us"] for peer, timing in table.get(row, {}).items()}
        others = [times[peer] for peer in peers if peer in times]
        found = min(others) / times["ours"] if "ours" in times and others else None
        lines.append(line(goal, what, found, wanted))
    return lines
