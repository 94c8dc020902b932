"""SynFlow and neuron matching on a real GPU: checks against the references, and G11 against eager torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lotterykit.bench.timing import measure
from lotterykit.ops.dispatch import missing, use_backend
from lotterykit.ops.match_neurons import match_neurons
from lotterykit.ops.synflow_masks import Counted, synflow_masks
from lotterykit.ops.synflow_scores import synflow_scores

Report = Callable[[dict[str, Any]], None]


def check_synflow(cases: int = 20, *, most: int = 2000, device: str = "cuda") -> list[str]:
    """Scores of masked chains of plain, huge and tiny weights against the reference on the CPU, to 1e-12."""
    failures = []
    for case in range(cases):
        dtype = torch.float64 if case % 2 else torch.float32
        widths = [random.randint(1, most) for _ in range(random.randint(2, 6))]
        sizes = list(zip(widths[1:], widths[:-1], strict=True))
        scale = random.choice([1.0, 1e-30, 1e30])
        weights = [torch.randn(s, device=device).to(dtype) * scale for s in sizes]
        masks = [torch.rand(s, device=device) < random.choice([0.01, 0.5]) for s in sizes]
        with use_backend("triton", ops=["synflow_scores"]):
            got = synflow_scores(weights, masks=masks)
        with use_backend("reference", ops=["synflow_scores"]):
            want = synflow_scores([w.cpu() for w in weights], masks=[m.cpu() for m in masks])
        pairs = zip(got, want, strict=True)
        if not all(torch.allclose(a.cpu(), b, rtol=1e-12, atol=0.0) for a, b in pairs):
            failures.append(f"synflow_scores {widths} {dtype} times {scale:g} differs")
    return failures


def check_match_neurons(cases: int = 20, *, most: int = 3000, device: str = "cuda") -> list[str]:
    """Choices against the reference on the same device, whose cosines are the same numbers."""
    failures = []
    for case in range(cases):
        candidates, places = random.randint(1, most), random.choice([1, 2, 30])
        targets = random.randint(0, min(50, candidates))
        theta = torch.randn(targets, places, dtype=torch.float64, device=device)
        m = torch.randn(candidates, places, dtype=torch.float64, device=device)
        theta = theta * (torch.rand_like(theta) < 0.7)
        m = m.sign() if case % 3 == 0 else m
        found = []
        for backend in ("triton", "reference"):
            with use_backend(backend, ops=["match_neurons"]):
                found.append(match_neurons(theta, m))
        if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
            failures.append(f"match_neurons {targets} of {candidates}, {places} places differs")
    return failures


def time_synflow(
    report: Report,
    *,
    widths: tuple[int, ...] = (2500, 2500, 2500, 2500, 2500),
    rounds: int = 100,
    density: float = 0.01,
    device: str = "cuda",
) -> None:
    """SynFlow of 25M weights, all rounds in one call; the peers are the published rounds in eager float64."""
    sizes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [torch.randn(s, device=device) for s in sizes]
    total = sum(w.numel() for w in weights)
    counts = [round(total * density ** (r / rounds)) for r in range(1, rounds + 1)]
    table: dict[str, Any] = {"rounds": {}}
    every = tuple(range(len(weights)))
    schedule = [[Counted(every, k)] for k in counts]
    selecting = "cuda" if device == "cuda" and missing("cuda") is None else "auto"

    def ours() -> Any:
        with (
            use_backend("triton" if device == "cuda" else "reference", ops=["synflow_masks"]),
            use_backend(selecting, ops=["topk_mask"]),
        ):
            return synflow_masks(weights, schedule)

    few = counts[:: max(1, rounds // 5)]  # of kthvalue, which takes a tenth of a second a round
    for peer, function, steps in (
        ("ours", ours, rounds),
        ("eager-sort", lambda: _eager(weights, counts, _by_sort), rounds),
        ("eager-kthvalue", lambda: _eager(weights, few, _by_kthvalue), len(few)),
    ):
        timing = measure(function, device=device, seconds=1.0, most=5)
        us = timing.median / steps * rounds
        table["rounds"][peer] = {"us": us, "device": timing.as_dict()}
        report(table)


def _eager(weights: list[Tensor], counts: list[int], choose: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """The published rounds: scores by autograd of the linearised chain, one threshold over all of them."""
    masks = [torch.ones_like(w) for w in weights]
    for k in counts:
        magnitudes = [(w * m).abs().double().requires_grad_() for w, m in zip(weights, masks, strict=True)]
        x = torch.ones(weights[0].shape[1], dtype=torch.float64, device=weights[0].device)
        for magnitude in magnitudes:
            x = magnitude @ x
        slopes = torch.autograd.grad(x.sum(), magnitudes)
        scores = [(m.detach() * s) for m, s in zip(magnitudes, slopes, strict=True)]
        threshold = choose(torch.cat([s.flatten() for s in scores]), k)
        masks = [(s >= threshold).float() * m for s, m in zip(scores, masks, strict=True)]
    return masks


def _by_sort(scores: Tensor, k: int) -> Tensor:
    return scores.sort(descending=True).values[k - 1]


def _by_kthvalue(scores: Tensor, k: int) -> Tensor:
    return scores.kthvalue(scores.numel() - k + 1).values
