"""The GPU goals that can be timed today, each against all its peers: G1, G2 (masked linear), G8 (top-k)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.goals import line
from lotterykit.bench.timing import measure, rotations
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.topk_mask import topk_mask

# goal -> (what, file topic, row of the table, peer, ratio wanted)
GOALS = {
    "G1": ("masked linear fwd+bwd (512, 4096, 4096) TF32", "masked_linear", "tf32", "dense-masked", 1.4),
    "G2": (
        "the same against torch.compile max-autotune",
        "masked_linear",
        "tf32",
        "compile-max-autotune",
        1.0,
    ),
    "G8 topk": ("exact top-k of 25M scores", "topk_mask", "normal", "topk", 3.0),
    "G8 sort": ("exact top-k of 25M scores", "topk_mask", "normal", "sort", 20.0),
    "G8 kthvalue": ("exact top-k of 25M scores", "topk_mask", "normal", "kthvalue", 500.0),
    "G9": ("edge-popup layer fwd+bwd (512, 4096, 4096) TF32", "edge_popup", "tf32", "eager-sort", 5.0),
    "G10": ("Gem-Miner update of 25M scores", "gem_miner", "update", "fused-sgd-clamp", 1.3),
    "G11 kthvalue": ("SynFlow, 100 rounds, 25M weights", "synflow", "rounds", "eager-kthvalue", 100.0),
    "G11 sort": ("SynFlow, 100 rounds, 25M weights", "synflow", "rounds", "eager-sort", 20.0),
}
Report = Callable[[dict[str, Any]], None]


def time_masked_linear(
    report: Report,
    *,
    shape: tuple[int, int, int] = (512, 4096, 4096),
    density: float = 0.1,
    device: str = "cuda",
    compiled: bool = True,
) -> None:
    """Device time of forward plus backward at (batch, in, out), and with the host's, for TF32 and bf16.

    `report` gets the whole table {row: {peer: timing}} after every new number.
    """
    table: dict[str, Any] = {}
    rows = (("tf32", torch.float32), ("bf16", torch.bfloat16))
    sets = {name: _layer_inputs(shape, density, dtype, device) for name, dtype in rows}
    for peers in (EAGER_PEERS, _compiled_peers() if compiled else {}):
        for name, _ in rows:
            for peer, forward in peers.items():
                with fp32_precision("tf32"):
                    table.setdefault(name, {})[peer] = _time_both(
                        _forward_backward(forward), sets[name], device
                    )
                report(table)


def _layer_inputs(
    shape: tuple[int, int, int], density: float, dtype: torch.dtype, device: str
) -> list[tuple[Tensor, ...]]:
    """Sets (x, weight, mask, bias, g) that together exceed the cache."""
    batch, n_in, n_out = shape
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2**20
    sets: list[tuple[Tensor, ...]] = []
    for _ in range(rotations(n_in * n_out * dtype.itemsize, cache, most=6)):
        x, weight, bias, g = (
            torch.randn(size, device=device).to(dtype)
            for size in ((batch, n_in), (n_out, n_in), (n_out,), (batch, n_out))
        )
        mask = torch.rand(n_out, n_in, device=device) < density
        sets.append((x.requires_grad_(), weight.requires_grad_(), mask, bias.requires_grad_(), g))
    return sets


def _dense_masked(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight * mask, bias)


def _dense(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


EAGER_PEERS = {"ours": masked_linear, "dense-masked": _dense_masked, "dense": _dense}


def _compiled_peers() -> dict[str, Callable[..., Tensor]]:
    return {
        "compile": torch.compile(_dense_masked),
        "compile-max-autotune": torch.compile(_dense_masked, mode="max-autotune-no-cudagraphs"),
    }


def _forward_backward(forward: Callable[..., Tensor]) -> Callable[..., Any]:
    def step(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, g: Tensor) -> Any:
        with use_backend("triton", ops=["masked_linear"]):
            return torch.autograd.grad(forward(x, weight, mask, bias), (x, weight, bias), g)

    return step


def _time_both(function: Callable[..., Any], sets: list[tuple[Any, ...]], device: str) -> dict[str, Any]:
    alone = measure(function, sets, device=device, seconds=1.0, queued=True)
    eager = measure(function, sets, device=device, seconds=0.5)
    return {"us": alone.median, "device": alone.as_dict(), "with_host": eager.as_dict()}


def time_topk_mask(
    report: Report, *, tensors: int = 50, each: int = 500_000, density: float = 0.1, device: str = "cuda"
) -> None:
    """Exact global top-k of 25M scores in 50 tensors, normal and 70 % zeros; peers write the same masks."""
    table: dict[str, Any] = {}
    k = round(density * tensors * each)
    for name in ("normal", "synflow-like"):
        sets = []
        for _ in range(3):
            scores = [torch.randn(each, device=device) for _ in range(tensors)]
            if name != "normal":
                scores = [s.abs() * (torch.rand_like(s) < 0.3) for s in scores]
            sets.append((scores, k))
        table[name] = {}
        for peer, function in (("ours", _our_topk), *_topk_peers().items()):
            timing = measure(function, sets, device=device, seconds=1.5, most=50)
            table[name][peer] = {"us": timing.median, "device": timing.as_dict()}
            report(table)


def _our_topk(scores: list[Tensor], k: int) -> list[Tensor]:
    with use_backend("cuda" if scores[0].is_cuda else "auto"):
        return topk_mask(scores, k=k)


def _topk_peers() -> dict[str, Callable[[list[Tensor], int], list[Tensor]]]:
    def by_topk(scores: list[Tensor], k: int) -> list[Tensor]:
        threshold = torch.cat([s.flatten() for s in scores]).topk(k, sorted=False).values.min()
        return [s >= threshold for s in scores]

    def by_sort(scores: list[Tensor], k: int) -> list[Tensor]:
        threshold = torch.cat([s.flatten() for s in scores]).sort(descending=True).values[k - 1]
        return [s >= threshold for s in scores]

    def by_kthvalue(scores: list[Tensor], k: int) -> list[Tensor]:
        joined = torch.cat([s.flatten() for s in scores])
        threshold = joined.kthvalue(joined.numel() - k + 1).values
        return [s >= threshold for s in scores]

    return {"topk": by_topk, "sort": by_sort, "kthvalue": by_kthvalue}


def verdicts(topic: str, table: dict[str, Any]) -> list[str]:
    """One line a goal of this topic: reached, missed with its number, or not measured."""
    lines = []
    for goal, (what, of, row, peer, wanted) in GOALS.items():
        if of != topic:
            continue
        times = table.get(row, {})
        measured = "ours" in times and peer in times
        found = times[peer]["us"] / times["ours"]["us"] if measured else None
        lines.append(line(goal, f"{what} against {peer}", found, wanted))
    return lines
