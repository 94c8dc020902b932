"""Timings of the other Triton kernels against their peers: G9 (edge-popup), G10 (Gem-Miner), convolutions,
masked copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.timing import measure, rotations
from lotterykit.ops.dispatch import missing, use_backend
from lotterykit.ops.gem_miner_step import gem_miner_step_
from lotterykit.ops.masked_conv2d import masked_conv2d
from lotterykit.ops.masked_copies import masked_copies
from lotterykit.ops.threshold import score_thresholds
from lotterykit.ops.threshold_linear import threshold_linear

Report = Callable[[dict[str, Any]], None]
CONVOLUTIONS = ((32, 64, 32, 64), (32, 128, 16, 128), (32, 512, 4, 512), (256, 256, 16, 256))


class _SortedSubnet(torch.autograd.Function):
    """Edge-popup as published: the mask by a sort of all scores, its gradient straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, density: float) -> Tensor:
        order = scores.flatten().sort().indices
        mask = torch.ones_like(scores)
        mask.view(-1)[order[: int((1 - density) * scores.numel())]] = 0
        return mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def time_edge_popup(
    report: Report,
    *,
    shape: tuple[int, int, int] = (512, 4096, 4096),
    density: float = 0.1,
    device: str = "cuda",
) -> None:
    """A linear layer whose scores train, forward plus backward at (batch, in, out), TF32 and bf16."""
    batch, n_in, n_out = shape
    table: dict[str, Any] = {}
    for name, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
        sets = []
        for _ in range(_rotations(n_in * n_out * dtype.itemsize, device)):
            x, weight, g = (
                torch.randn(s, device=device).to(dtype)
                for s in ((batch, n_in), (n_out, n_in), (batch, n_out))
            )
            scores = torch.randn(n_out, n_in, device=device).to(dtype).requires_grad_()
            sets.append((x.requires_grad_(), weight, scores, g))
        for peer, layer in (("ours", _our_edge_popup), ("eager-sort", _sorted_edge_popup)):
            with fp32_precision("tf32"), _triton(device, "threshold_linear"):
                table.setdefault(name, {})[peer] = _timed(_backward(layer, density), sets, device)
            report(table)


def _our_edge_popup(x: Tensor, weight: Tensor, scores: Tensor, density: float) -> Tensor:
    selecting = "cuda" if x.is_cuda and missing("cuda") is None else "auto"
    with use_backend(selecting, ops=["topk_mask"]):
        (threshold,) = score_thresholds([scores], density=density)
    return threshold_linear(x, weight, scores, threshold)


def _sorted_edge_popup(x: Tensor, weight: Tensor, scores: Tensor, density: float) -> Tensor:
    return F.linear(x, weight * _SortedSubnet.apply(scores.abs(), density))


def _backward(layer: Callable[..., Tensor], density: float) -> Callable[..., Any]:
    def step(x: Tensor, weight: Tensor, scores: Tensor, g: Tensor) -> Any:
        return torch.autograd.grad(layer(x, weight, scores, density), (x, scores), g)

    return step


def time_gem_miner(report: Report, *, tensors: int = 50, each: int = 500_000, device: str = "cuda") -> None:
    """Gem-Miner's update of 25M scores in 50 tensors; the peer is torch's fused SGD, whose weight decay is
    the L2 penalty, and a clamp of all tensors."""
    table: dict[str, Any] = {"update": {}}
    scores, gradients, momenta = ([torch.rand(each, device=device) for _ in range(tensors)] for _ in range(3))

    def ours() -> None:
        gem_miner_step_(scores, gradients, momenta, lr=0.1, penalty=1e-4)

    parameters = [torch.nn.Parameter(s.clone()) for s in scores]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
    optimizer = torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=2e-4, fused=True)

    plain: list[Tensor] = [*parameters]

    def fused() -> None:
        optimizer.step()
        torch._foreach_clamp_min_(plain, 0.0)
        torch._foreach_clamp_max_(plain, 1.0)

    with torch.no_grad(), _triton(device, "gem_miner_step"):
        for peer, function in (("ours", ours), ("fused-sgd-clamp", fused)):
            table["update"][peer] = _timed(function, [()], device)
            report(table)


def time_masked_conv2d(
    report: Report, *, shapes: Any = CONVOLUTIONS, density: float = 0.1, device: str = "cuda"
) -> None:
    """3x3 convolutions, channels-last, forward plus backward in bf16."""
    table: dict[str, Any] = {}
    for n, n_in, side, n_out in shapes:
        sets = []
        for _ in range(_rotations(2 * n * n_in * side * side, device)):
            x, weight, g = (
                torch.randn(s, device=device).bfloat16().to(memory_format=torch.channels_last)
                for s in ((n, n_in, side, side), (n_out, n_in, 3, 3), (n, n_out, side, side))
            )
            mask = torch.rand(weight.shape, device=device) < density
            sets.append((x.requires_grad_(), weight.requires_grad_(), mask, g))
        row = table.setdefault(f"({n}, {n_in}, {side}x{side}, {n_out})", {})
        for peer, layer in CONV_PEERS.items():
            with _triton(device, "masked_conv2d"):
                row[peer] = _timed(_conv_backward(layer), sets, device)
            report(table)


def _masked_conv(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return masked_conv2d(x, weight, mask, padding=1)


def _dense_masked_conv(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return F.conv2d(x, weight * mask, padding=1)


def _dense_conv(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


CONV_PEERS = {"ours": _masked_conv, "dense-masked": _dense_masked_conv, "dense": _dense_conv}


def _conv_backward(layer: Callable[..., Tensor]) -> Callable[..., Any]:
    def step(x: Tensor, weight: Tensor, mask: Tensor, g: Tensor) -> Any:
        return torch.autograd.grad(layer(x, weight, mask), (x, weight), g)

    return step


def time_masked_copies(
    report: Report, *, tensors: int = 50, side: int = 700, density: float = 0.1, device: str = "cuda"
) -> None:
    """Kept weights of 50 tensors as bf16 in one launch, against torch's two operations a tensor."""
    weights = [torch.randn(side, side, device=device) for _ in range(tensors)]
    masks = [torch.rand(side, side, device=device) < density for _ in range(tensors)]
    table: dict[str, Any] = {"bf16": {}}

    def ours() -> list[Tensor]:
        return masked_copies(weights, masks, dtype=torch.bfloat16)

    def eager() -> list[Tensor]:
        return [(w * m).bfloat16() for w, m in zip(weights, masks, strict=True)]

    with _triton(device, "masked_copies"):
        for peer, function in (("ours", ours), ("multiply-and-cast", eager)):
            table["bf16"][peer] = _timed(function, [()], device)
            report(table)


def _triton(device: str, *ops: str) -> Any:
    return use_backend("triton" if device == "cuda" else "reference", ops=ops)


def _rotations(size: int, device: str) -> int:
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2**20
    return rotations(size, cache, most=6)


def _timed(function: Callable[..., Any], sets: list[tuple[Any, ...]], device: str) -> dict[str, Any]:
    timing = measure(function, sets, device=device, seconds=1.0 if device == "cuda" else 0.01)
    return {"us": timing.median, "device": timing.as_dict()}
