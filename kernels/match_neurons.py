"""Triton kernel of `match_neurons`: each target in turn takes the free candidate of largest cosine.

One program does it all, as every target must know what those before it took; the cosines, which are most of
the work, are a product that comes before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from lotterykit.kernels import tiles
from torch import Tensor

BLOCK, WARPS = 1024, 8


@triton.jit
def take_in_turn(
    cosine, norm, length, taken, chosen, aligned, TARGETS, N,
    TIE: tl.constexpr, COUNT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """cosine, norm: float64 [TARGETS, N]; length: float64 [TARGETS], 0 for a target that takes none; taken:
    uint8 [N], zeros; chosen: int64, aligned: uint8 [TARGETS]. TIE is a constant, as an
    argument would be rounded to float32. COUNT: -1, or in the interpreter TARGETS."""
    for target in range(0, TARGETS if COUNT < 0 else COUNT):
        row = target.to(tl.int64) * N if COUNT < 0 else target * N
        top = tl.full((), float("-inf"), tl.float64)
        for block in range(0, BLOCKS):
            at = block * BLOCK + tl.arange(0, BLOCK)
            free = tl.load(taken + at, at < N, 1) == 0
            found = tl.load(cosine + row + at, free, float("-inf"))
            top = tl.maximum(top, tl.max(found, 0))
        positive = top > 0.0
        best, winner = tl.full((), -1.0, tl.float64), tl.full((), 0, tl.int32)
        for block in range(0, BLOCKS):
            at = block * BLOCK + tl.arange(0, BLOCK)
            free = tl.load(taken + at, at < N, 1) == 0
            equal = tl.load(cosine + row + at, free, float("-inf")) >= top - TIE
            length_of = tl.load(norm + row + at, free, -1.0)
            length_of = tl.where(free & (equal | (positive == 0)), length_of, -1.0)
            most = tl.max(length_of, 0)
            first = tl.min(tl.where(length_of == most, at, 2147483647), 0)
            winner = tl.where(most > best, first, winner)
            best = tl.maximum(best, most)
        takes = tl.load(length + target) != 0.0
        tl.debug_barrier()  # all have read what was free
        tl.store(taken + winner, 1, takes)
        tl.store(chosen + target, tl.where(takes, winner, -1).to(tl.int64))
        tl.store(aligned + target, (positive & takes).to(tl.uint8))
        tl.debug_barrier()  # all see what was taken


def match(cosine: Tensor, norm: Tensor, length: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """chosen (int64, -1 for none) and aligned (bool) `[targets]`; cosine, norm: float64 `[targets, n]`, -inf
    where a candidate has no cosine; length: `[targets]`; `tie`: how much smaller a cosine is equal."""
    targets, n = cosine.shape
    chosen = torch.full((targets,), -1, dtype=torch.int64, device=cosine.device)
    aligned = torch.zeros(targets, dtype=torch.uint8, device=cosine.device)
    if targets == 0 or n == 0:
        return chosen, aligned.bool()
    interpreted = tiles.check_kernel(take_in_turn, cosine.device)
    values = {
        "cosine": cosine.contiguous(), "norm": norm.contiguous(), "length": length.contiguous(),
        "taken": torch.zeros(n, dtype=torch.uint8, device=cosine.device),
        "chosen": chosen, "aligned": aligned,
        "TARGETS": targets, "N": n, "TIE": tie, "COUNT": targets if interpreted else -1,
        "BLOCKS": triton.cdiv(n, BLOCK), "BLOCK": BLOCK,
    }  # fmt: skip
    tiles.launch(take_in_turn, 1, cosine.device, values, WARPS, 1)
    return chosen, aligned.bool()
