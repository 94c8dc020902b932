"""G7: where sparse linear layers overtake masked ones on a GPU, by density, shape and precision.

`CROSSOVERS` of lotterykit/ops/crossovers.py gets the rows that `crossovers` finds in the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.goals import line
from lotterykit.bench.timing import measure, rotations
from lotterykit.nn.convert import convert_, revert_
from lotterykit.ops.crossovers import CROSSOVERS, Crossover
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.routes import ROUTES

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
# precision, as in CROSSOVERS -> dtype, and what float32 products are computed in
PRECISIONS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}
# (batch, in, out), and densities, the ones about which most is asked first
SHAPES = ((512, 4096, 4096), (4096, 4096, 4096), (512, 1024, 1024))
DENSITIES = (0.01, 0.05, 0.03, 0.1, 0.001, 0.02, 0.005, 0.2, 0.5)
# what a user of a mask can have instead of the sparse layer; "dense" has its zeros baked in and trains none
CHOICES = ("dense-masked", "masked", "sparse")
Step = Callable[[nn.Module, Tensor, Tensor], Any]


def _backward(layer: nn.Module, x: Tensor, g: Tensor) -> Any:
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def _multiplied(layer: Any, x: Tensor, g: Tensor) -> Any:
    y = F.linear(x, layer.weight * layer.weight_mask, layer.bias)
    return torch.autograd.grad(y, (x, *layer.parameters()), g)


def _forced(backend: str, *ops: str) -> Step:
    def step(layer: nn.Module, x: Tensor, g: Tensor) -> Any:
        with use_backend(backend if x.is_cuda else "auto", ops=ops):
            return _backward(layer, x, g)

    return step


# name -> (format of the layer, forward plus backward)
PEERS: dict[str, tuple[str, Step]] = {
    "sparse": ("sparse", _forced("cuda", "spmm", "sddmm")),
    "dense-masked": ("masked", _multiplied),
    "masked": ("masked", _forced("triton", "masked_linear")),
    "dense": ("plain", _backward),
}


def time_crossover(
    report: Report,
    *,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    densities: tuple[float, ...] = DENSITIES,
    device: str = "cuda",
    seconds: float = 0.05,
) -> None:
    """Device time of forward plus backward of a linear layer, by precision, shape and density.

    `report` gets the whole table {row: {peer: timing}} after every new number.
    """
    table: dict[str, Any] = {}
    for density in densities:
        for shape in shapes:
            for precision, (dtype, products) in PRECISIONS.items():
                row = row_name(precision, shape, density)
                table[row] = {}
                for peer, (form, step) in PEERS.items():
                    sets = _sets(shape, density, dtype, form, device)
                    try:
                        with fp32_precision(products):
                            timing = measure(step, sets, device=device, seconds=seconds, queued=True)
                    except RuntimeError as error:  # a peer that is not there leaves a hole, which is seen
                        log.warning("%s: %s does not run: %s", row, peer, error)
                        continue
                    table[row][peer] = {"us": timing.median, "device": timing.as_dict()}
                    report(table)


def _sets(
    shape: tuple[int, int, int], density: float, dtype: torch.dtype, form: str, device: str
) -> list[tuple[Any, ...]]:
    """Layers with their inputs that together exceed the cache."""
    batch, n_in, n_out = shape
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2**20
    mask = torch.rand(n_out, n_in, device=device) < density
    made = []
    for _ in range(rotations((batch * (n_in + n_out) + n_in * n_out) * dtype.itemsize, cache, most=4)):
        x, g = (torch.randn(batch, n, device=device).to(dtype) for n in (n_in, n_out))
        layer: nn.Module = nn.Linear(n_in, n_out, device=device, dtype=dtype)
        if form == "plain":
            layer = revert_(convert_(layer, masks={"weight": mask}))
        else:
            layer = convert_(layer, masks={"weight": mask}, format=form)
        made.append((layer, x.requires_grad_(), g))
    return made


def row_name(precision: str, shape: tuple[int, int, int], density: float) -> str:
    return f"{precision} {'x'.join(map(str, shape))} {density:g}"


def _settings(table: Mapping[str, Any], precision: str) -> list[tuple[int, float, dict[str, float]]]:
    """(weights, density, us by peer) of the rows of a precision that hold all that is to be compared."""
    found = []
    for row, timings in table.items():
        name, shape, density = row.split()
        times = {peer: timing["us"] for peer, timing in timings.items()}
        if name == precision and set(CHOICES) <= times.keys():
            _, n_in, n_out = (int(size) for size in shape.split("x"))
            found.append((n_in * n_out, float(density), times))
    return found


def crossovers(table: Mapping[str, Any], evidence: str | None = None) -> list[Crossover]:
    """For each precision with one: from the fewest weights on, the highest density measured up to which the
    sparse layer is the fastest of all in every row."""
    rows = []
    for precision in PRECISIONS:
        settings = _settings(table, precision)
        for least in sorted({weights for weights, _, _ in settings}):
            within = [(density, times) for weights, density, times in settings if weights >= least]
            lost = [density for density, times in within if min(times, key=times.__getitem__) != "sparse"]
            won = [density for density, _ in within if density < min(lost, default=2.0)]
            if won:
                rows.append(Crossover("linear", least, max(won), evidence, "cuda", (precision,)))
                break
    return rows


def unfounded(row: Crossover, table: Mapping[str, Any]) -> str | None:
    """Why a table does not bear out a crossover of a GPU, or None."""
    (precision,) = row.precisions
    found = next((one for one in crossovers(table) if one.precisions == row.precisions), None)
    if found is None:
        return f"sparse layers are nowhere the fastest in {precision}"
    if row.weights < found.weights or (row.density or 0.0) > (found.density or 0.0):
        return f"{precision}: measured from {found.weights} weights on up to density {found.density}"
    return None


def verdicts(topic: str, table: Mapping[str, Any], rows: tuple[Crossover, ...] = CROSSOVERS) -> list[str]:
    """G7: how near `format="auto"` comes to the fastest choice in the worst row; and the rows that the table
    gives, to be written into CROSSOVERS."""
    if topic != "crossover":
        return []
    lines = []
    for precision in PRECISIONS:
        what = f"format='auto' against the better of dense and sparse, densities .5 to .001, {precision}"
        settings = _settings(table, precision)
        known = [
            r for r in rows if r.device == "cuda" and precision in r.precisions and r.density is not None
        ]
        worst = min((_share(known[0], *setting) for setting in settings), default=None) if known else None
        lines.append(line(f"G7 {precision}", what, worst, 0.95))
    found = crossovers(table, "this file")
    lines += [f"to write down: {row}" for row in found]
    return lines or [line("G7", "format='auto'", None, 0.95)]


def _share(row: Crossover, weights: int, density: float, times: Mapping[str, float]) -> float:
    """The fastest choice's time over that of what is chosen: masked layers go the way of measured routes."""
    served = any((r.op, r.backend) == ("masked_linear", "triton") and r.evidence for r in ROUTES)
    sparse = weights >= row.weights and density <= (row.density or 0.0)
    chosen = "sparse" if sparse else "masked" if served else "dense-masked"
    return min(times[peer] for peer in CHOICES) / times[chosen]
