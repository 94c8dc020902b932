"""Triton kernels over many tensors in one launch: masked copies, and Gem-Miner's score update.

A launch reads a plan, int64 on the device: a row of addresses and the number of entries for each tensor, then
for each chunk of BLOCK entries the tensor it belongs to. Tensors are read flat, as they lie in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from lotterykit.kernels import tiles
from torch import Tensor

BLOCK, WARPS = 2048, 4
TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _pointer(plan, row, COLUMN: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    return tl.load(plan + row * COLUMNS + COLUMN).to(tl.pointer_type(DTYPE))


@triton.jit
def _entries(pointer, start, COUNT: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to COUNT entries in a row; said to be aligned, where they are, for loads of 16 bytes."""
    found = pointer + (start + tl.arange(0, COUNT))
    if ALIGNED:
        found = tl.max_contiguous(tl.multiple_of(found, 16), COUNT)
    return found


@triton.jit
def _place(plan, tensors, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """(tensor, first entry, number of entries) of this program's chunk; a row ends with the tensor's number
    of entries and the number of its first chunk."""
    row = tl.load(plan + tensors * COLUMNS + tl.program_id(0))
    first = tl.load(plan + row * COLUMNS + COLUMNS - 1)
    return row, (tl.program_id(0) - first) * BLOCK, tl.load(plan + row * COLUMNS + COLUMNS - 2)


@triton.jit
def masked_copy(
    plan, tensors, FROM: tl.constexpr, TO: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """One chunk: target = w where its bit is set, else 0. Rows: w, bits (uint8, the lowest first), target."""
    row, start, size = _place(plan, tensors, 5, BLOCK)
    source = _entries(_pointer(plan, row, 0, 5, FROM), start, BLOCK, ALIGNED)
    bits = _entries(_pointer(plan, row, 1, 5, tl.uint8), start // 8, BLOCK // 8, ALIGNED)
    target = _entries(_pointer(plan, row, 2, 5, TO), start, BLOCK, ALIGNED)
    place = tl.arange(0, 8)[None, :].to(tl.uint8)
    if start + BLOCK <= size:  # whole chunks go by loads of 16 bytes
        keep = tl.reshape((tl.load(bits)[:, None] >> place) & 1, (BLOCK,)) != 0
        tl.store(target, tl.where(keep, tl.load(source), 0.0).to(TO))
    else:
        inside = start + tl.arange(0, BLOCK) < size
        packed = tl.load(bits, start + 8 * tl.arange(0, BLOCK // 8) < size, 0)
        keep = tl.reshape((packed[:, None] >> place) & 1, (BLOCK,)) != 0
        tl.store(target, tl.where(keep, tl.load(source, inside, 0.0), 0.0).to(TO), inside)


@triton.jit
def _stepped(score, gradient, momentum, active, rate, inertia, slope):
    """Score and momentum after a step of SGD with the L2 penalty, projected to [0, 1]; NaN stays NaN."""
    gradient = tl.where(active, gradient + score * slope, 0.0)
    momentum = inertia * momentum + gradient
    score = score - rate * momentum
    score = tl.where(score < 0.0, 0.0, score)
    return tl.where(score > 1.0, 1.0, score), momentum


@triton.jit(do_not_specialize=["rate", "inertia", "slope"])
def gem_miner(
    plan, tensors, rate, inertia, slope, HAS_ACTIVE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One chunk of Gem-Miner's update, float32. Rows: scores, gradients, momenta, active (0: frozen)."""
    row, start, size = _place(plan, tensors, 6, BLOCK)
    p = _entries(_pointer(plan, row, 0, 6, tl.float32), start, BLOCK, ALIGNED)
    g = _entries(_pointer(plan, row, 1, 6, tl.float32), start, BLOCK, ALIGNED)
    m = _entries(_pointer(plan, row, 2, 6, tl.float32), start, BLOCK, ALIGNED)
    active = _entries(_pointer(plan, row, 3, 6, tl.uint8), start, BLOCK, ALIGNED)
    inside = start + tl.arange(0, BLOCK) < size
    if start + BLOCK <= size:  # whole chunks go by loads of 16 bytes
        allowed = tl.load(active) != 0 if HAS_ACTIVE else inside
        score, momentum = _stepped(tl.load(p), tl.load(g), tl.load(m), allowed, rate, inertia, slope)
        tl.store(p, score)
        tl.store(m, momentum)
    else:
        allowed = tl.load(active, inside, 0) != 0 if HAS_ACTIVE else inside
        score, momentum = _stepped(
            tl.load(p, inside, 0.0), tl.load(g, inside, 0.0), tl.load(m, inside, 0.0),
            allowed, rate, inertia, slope,
        )  # fmt: skip
        tl.store(p, score, inside)
        tl.store(m, momentum, inside)


class Plan(NamedTuple):
    """`table`: what a launch reads, on its device; `chunks`: its programs; `aligned`: whether every address
    is a multiple of 16."""

    table: Tensor
    chunks: int
    aligned: bool


def plan_of(rows: Sequence[Sequence[Tensor | None]], sizes: Sequence[int], device: torch.device) -> Plan:
    """The plan of tensors on `device`: that of an earlier call with the same addresses and sizes, if it was
    one of the last, so that a step which is repeated copies nothing to the device and never waits for it.

    A CUDA graph that is being captured gets a plan of its own, which its launches write from their arguments:
    nothing is copied then either, and the plan lives as long as the graph.
    """
    addresses = tuple(0 if t is None else t.data_ptr() for row in rows for t in row)
    if _capturing(device):
        return _made(addresses, tuple(sizes), device, _written)
    # a plan is for the stream that it was copied on: nothing orders that copy before other streams' launches
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _remembered(addresses, tuple(sizes), device, stream)


@functools.lru_cache(maxsize=64)
def _remembered(
    addresses: tuple[int, ...], sizes: tuple[int, ...], device: torch.device, stream: int
) -> Plan:
    return _made(addresses, sizes, device, _copied)


def _made(
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    device: torch.device,
    place: Callable[[list[int], torch.device], Tensor],
) -> Plan:
    """`place` brings the numbers of the rows to the device."""
    wide, first, numbers = len(addresses) // max(1, len(sizes)), 0, []
    for number, size in enumerate(sizes):
        numbers += [*addresses[number * wide : (number + 1) * wide], size, first]
        first += triton.cdiv(size, BLOCK)
    aligned = all(address % 16 == 0 for address in addresses)
    if first == 0:
        return Plan(torch.empty(0, dtype=torch.int64, device=device), 0, aligned)
    rows = place(numbers, device)
    # of tensors that begin at one chunk all but the last are empty
    starts = rows.view(len(sizes), -1)[:, -1].contiguous()
    owners = torch.searchsorted(starts, torch.arange(first, device=device), right=True) - 1
    return Plan(torch.cat([rows, owners]), first, aligned)


def _copied(numbers: list[int], device: torch.device) -> Tensor:
    table = torch.tensor(numbers, dtype=torch.int64)
    # from pinned memory, as a copy from any other waits for the stream
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _written(numbers: list[int], device: torch.device) -> Tensor:
    """By launches that carry the numbers in their arguments."""
    table = torch.zeros(len(numbers), dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.unbind()), numbers)
    return table


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def masked_copies(weights: Sequence[Tensor], bits: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Write w where kept, else 0, to each target. All flat and contiguous; the weights share a dtype, the
    targets theirs; bits: uint8 `[ceil(entries / 8)]`, the lowest first."""
    device = weights[0].device
    rows = list(zip(weights, bits, targets, strict=True))
    plan = plan_of(rows, [w.numel() for w in weights], device)
    if plan.chunks == 0:
        return
    tiles.check_kernel(masked_copy, device)
    values = {
        "plan": plan.table, "tensors": len(weights),
        "FROM": TYPES[weights[0].dtype], "TO": TYPES[targets[0].dtype],
        "ALIGNED": plan.aligned, "BLOCK": BLOCK,
    }  # fmt: skip
    tiles.launch(masked_copy, plan.chunks, device, values, WARPS, 1)


def gem_miner_step(
    scores: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    active: Sequence[Tensor] | None,
    rate: float,
    inertia: float,
    slope: float,
) -> None:
    """Step scores and momenta in place. All float32 (active: bool), contiguous."""
    frozen = [None] * len(scores) if active is None else list(active)
    rows = list(zip(scores, gradients, momenta, frozen, strict=True))
    device = scores[0].device
    plan = plan_of(rows, [s.numel() for s in scores], device)
    if plan.chunks == 0:
        return
    tiles.check_kernel(gem_miner, device)
    values = {
        "plan": plan.table, "tensors": len(scores), "rate": rate, "inertia": inertia, "slope": slope,
        "HAS_ACTIVE": active is not None, "ALIGNED": plan.aligned, "BLOCK": BLOCK,
    }  # fmt: skip
    tiles.launch(gem_miner, plan.chunks, device, values, WARPS, 1)
