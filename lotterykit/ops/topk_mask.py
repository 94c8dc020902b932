"""`topk_mask`: keep exactly k of the scores of many tensors, without sorting or concatenating them.

An entry is kept where score > T, or score == T and h <= H, with h a bijection of its flat position drawn by
the seed: ties fall evenly over all tensors, on every backend alike. Natively one pass over the scores does it
(csrc/cpu/topk_mask.cpp); on a GPU, histograms (csrc/cuda/topk_mask.cu).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_density, check_seed
from lotterykit.ops.dispatch import Call, load, select
from lotterykit.ops.guess import Guess
from lotterykit.ops.operands import cuda_queue, ready

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NATIVE = (torch.float32, torch.float64)
_WORD = 0xFFFFFFFF


def topk_mask(
    scores: Sequence[Tensor],
    *,
    density: float | None = None,
    k: int | None = None,
    seed: int = 0,
    within: Sequence[Tensor] | None = None,
    guess: Guess | None = None,
) -> list[Tensor]:
    """Bool masks, shaped as `scores`, that keep the k highest scores of all tensors together.

    `scores`: floating tensors of any shapes, one dtype, one device, fewer than 2**32 entries in all; no
    gradient flows. `density` in (0, 1] means k = round(density * entries). Ties are drawn by `seed`.
    `within`: bool tensors shaped as `scores`; only their True entries compete (masks stay monotone).
    `guess`: one `Guess` for a series of selections over scores that change slowly saves time, nothing else.
    Raises `ArgumentError` for a NaN among the competing scores and for k above their number.

    >>> topk_mask([torch.tensor([3.0, 1.0]), torch.tensor([[2.0]])], k=2)
    [tensor([ True, False]), tensor([[True]])]
    """
    k = check_selection(scores, density=density, k=k, seed=seed, within=within)
    if not scores:
        return []
    plain = [s.detach() if s.requires_grad or type(s) is torch.nn.Parameter else s for s in scores]
    if torch.compiler.is_compiling() or any(type(s) is not Tensor for s in plain):
        return _topk_mask_op(plain, k, seed, list(within or ()))
    # The short way: the custom op costs tens of microseconds a call.
    return _run(plain, k, seed, within, guess)


def check_selection(
    scores: Sequence[Tensor],
    *,
    density: float | None = None,
    k: int | None = None,
    seed: int = 0,
    within: Sequence[Tensor] | None = None,
) -> int:
    """How many entries these arguments of `topk_mask` keep; raises `ArgumentError` where they do not fit."""
    _check_tensors(scores, within)
    check_seed(seed)
    return _kept(scores, density, k)


def topk_mask_reference(
    scores: Sequence[Tensor], *, k: int, seed: int = 0, within: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """`topk_mask` in plain torch, for any device: the same masks, bit for bit."""
    if not scores:
        return []
    values = torch.cat([s.detach().reshape(-1).to(_computed(s.dtype)) for s in scores])
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    positions = torch.arange(values.numel(), device=values.device)
    if within is not None:
        positions = positions[torch.cat([w.reshape(-1) for w in within])]
        values = values[positions]
    if k > values.numel():
        raise _too_few(k, values.numel())
    if bool((nan := values.isnan()).any()):
        position = int(positions[nan.nonzero()[0]])
        for number, s in enumerate(scores):
            if position < s.numel():
                raise _is_nan(number, position)
            position -= s.numel()
    if k > 0:
        threshold = values.kthvalue(values.numel() - k + 1).values
        kept = values > threshold
        tied = (values == threshold).nonzero().squeeze(1)
        ranks = tie_rank(positions[tied], seed)
        kept[tied] = ranks <= ranks.kthvalue(k - int(kept.sum())).values
        mask[positions] = kept
    parts = mask.split([s.numel() for s in scores])
    return [part.clone().view(s.shape) for part, s in zip(parts, scores, strict=True)]


def tie_rank(positions: Tensor, seed: int) -> Tensor:
    """h: the rank, in [0, 2**32), of flat positions (int64, any shape) among ties; a bijection of 32 bits.

    Word for word csrc/tie_order.h; int64 products wrap, and their low 32 bits are right all the same.
    """
    first, second = seed_words(seed)
    x = positions ^ first
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15) ^ second) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def seed_words(seed: int) -> tuple[int, int]:
    """The two words of 32 bits that a seed of ties is spread over."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z & _WORD, z >> 32


def topk_mask_cpu(
    scores: Sequence[Tensor],
    *,
    k: int,
    seed: int = 0,
    within: Sequence[Tensor] | None = None,
    isa: str = "best",
) -> list[Tensor]:
    """`topk_mask` through lotterykit._cpu on `torch.get_num_threads()` threads; `isa` is there for tests."""
    return topk_cut_cpu(scores, k=k, seed=seed, within=within, isa=isa)[0]


def topk_cut_cpu(
    scores: Sequence[Tensor],
    *,
    k: int,
    seed: int = 0,
    within: Sequence[Tensor] | None = None,
    isa: str = "best",
    guess: Guess | None = None,
) -> tuple[list[Tensor], float, int]:
    """The masks of `topk_mask_cpu`, with T and H: kept is score > T, and score == T with `tie_rank` <= H."""
    native = importlib.import_module("lotterykit._cpu")
    found, inside, masks = _native_arguments(scores, within)
    status, tensor, index, competing, threshold, rank = native.topk_mask(
        [s.data_ptr() for s in found],
        [w.data_ptr() for w in inside],
        [m.data_ptr() for m in masks],
        [s.numel() for s in found],
        found[0].dtype == torch.float64,
        k,
        seed,
        torch.get_num_threads(),
        isa,
        None if guess is None else guess.bracket(),
    )
    if status == "nan":
        raise _is_nan(tensor, index)
    if status == "too_few":
        raise _too_few(k, competing)
    if guess is not None:
        guess.learn(threshold, rank)
    return masks, threshold, rank


def topk_mask_cuda(
    scores: Sequence[Tensor], *, k: int, seed: int = 0, within: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """`topk_mask` through lotterykit._cuda on the current stream; waits for it to report NaN scores."""
    found, inside, masks = _native_arguments(scores, within)
    device = found[0].device
    with cuda_queue(device) as (native, index, stream):
        rows, offset, chunk = [], 0, 0
        for number, s in enumerate(found):
            pointers = [s.data_ptr(), inside[number].data_ptr() if inside else 0, masks[number].data_ptr()]
            rows.append([*pointers, s.numel(), offset, chunk])
            offset += s.numel()
            chunk += -(-s.numel() // native.CHUNK)
        table = torch.tensor(rows, dtype=torch.int64).to(device)
        workspace = torch.empty(native.TOPK_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        native.topk_mask(
            table.data_ptr(),
            len(rows),
            chunk,
            found[0].dtype == torch.float64,
            k,
            seed,
            workspace.data_ptr(),
            index,
            stream,
        )
        competing, nan_position = workspace[:16].view(torch.int64).tolist()
    if k > competing:
        raise _too_few(k, competing)
    if nan_position >= 0:
        row = next(r for r in reversed(rows) if r[3] and r[4] <= nan_position)
        raise _is_nan(rows.index(row), nan_position - row[4])
    return masks


def call_of(
    scores: Sequence[Tensor],
    *,
    density: float | None = None,
    k: int | None = None,
    seed: int = 0,
    within: Sequence[Tensor] | None = None,
) -> Call:
    """What dispatch may know of `topk_mask(...)`; the density does not matter to it."""
    _check_tensors(scores, within)
    return _call(scores) if scores else Call("topk_mask", "cpu", torch.get_default_dtype())


def sample_inputs(generator: torch.Generator) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments (scores, k, seed, within) of the custom op for opcheck: ties, empty, transposed tensors."""
    normal = torch.randn(7, 5, generator=generator)
    zeros = (torch.rand(64, generator=generator) < 0.3).float()
    odd = torch.tensor([float("inf"), -0.0, 0.0, float("-inf"), 1.0])
    half = [torch.rand(t.shape, generator=generator) < 0.5 for t in (normal, zeros)]
    room = sum(int(h.sum()) for h in half)
    return [
        (([normal], 10, 0, []), {}),
        (([normal.t()], 34, 1, []), {}),
        (([normal, zeros, odd], 20, 2, []), {}),
        (([normal, zeros], room // 2, 3, half), {}),
        (([torch.empty(0)], 0, 4, []), {}),
        (([torch.empty(0), zeros.double()[:0].float(), zeros], 64, 5, []), {}),
        (([normal.double(), zeros.double()[::3]], 0, 6, []), {}),
        (([normal.bfloat16(), zeros.bfloat16()], 31, 7, []), {}),
        (([normal.half().expand(3, 7, 5)], 50, 8, []), {}),
        (([torch.tensor(1.5)], 1, 9, []), {}),
    ]


def _run(
    scores: Sequence[Tensor], k: int, seed: int, within: Sequence[Tensor] | None, guess: Guess | None = None
) -> list[Tensor]:
    route = select(_call(scores))
    if guess is not None and route.backend == "cpu":
        return topk_cut_cpu(scores, k=k, seed=seed, within=within, guess=guess)[0]
    masks = load(route)(scores, k=k, seed=seed, within=within)
    return masks  # type: ignore[return-value]


@torch.library.custom_op("lotterykit::topk_mask", mutates_args=())
def _topk_mask_op(scores: Sequence[Tensor], k: int, seed: int, within: Sequence[Tensor]) -> list[Tensor]:
    _check_tensors(scores, within or None)  # anybody may call an op
    check_seed(seed)
    _kept(scores, None, k)
    if not scores:
        return []
    return _run(scores, k, seed, within or None)  # schemas know no optional list of tensors: none is empty


@_topk_mask_op.register_fake
def _(scores: Sequence[Tensor], k: int, seed: int, within: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty(s.shape, dtype=torch.bool, device=s.device) for s in scores]


def _call(scores: Sequence[Tensor]) -> Call:
    return Call("topk_mask", scores[0].device.type, scores[0].dtype)


def _computed(dtype: torch.dtype) -> torch.dtype:
    """Half-precision scores are selected in float32: the conversion is exact and keeps the order."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _native_arguments(
    scores: Sequence[Tensor], within: Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Contiguous scores and `within` (kept alive by the caller while native code runs), new masks."""
    # Most scores need nothing done, and every torch call costs about as much as selecting from a small layer.
    found = [ready(s if s.dtype in NATIVE else s.detach().to(_computed(s.dtype))) for s in scores]
    inside = [] if within is None else [w.contiguous() for w in within]
    masks = [torch.empty_like(s, dtype=torch.bool) for s in found]  # half the cost of torch.empty
    return found, inside, masks


def _kept(scores: Sequence[Tensor], density: float | None, k: int | None) -> int:
    entries = sum(s.numel() for s in scores)
    if (density is None) == (k is None):
        raise ArgumentError(f"topk_mask takes exactly one of density and k, got density={density}, k={k}")
    if density is not None:
        return round(check_density(density) * entries)
    if isinstance(k, bool) or not isinstance(k, int):
        raise ArgumentError(f"k must be an int, got {k!r}")
    if not 0 <= k <= entries:
        raise ArgumentError(f"k must lie in [0, {entries}], the number of scores, got {k}")
    return k


def _check_tensors(scores: Sequence[Tensor], within: Sequence[Tensor] | None) -> None:
    _check_sequence("scores", scores)
    for number, s in enumerate(scores):
        if s.dtype not in DTYPES:
            raise ArgumentError(f"scores[{number}] must be floating, got {s.dtype}")
        if s.layout is not torch.strided:
            raise ArgumentError(f"scores[{number}] must be a dense tensor, got {s.layout}")
        if s.dtype != scores[0].dtype or s.device != scores[0].device:
            raise ArgumentError(
                f"scores must share dtype and device: scores[0] is {scores[0].dtype} on {scores[0].device}, "
                f"scores[{number}] is {s.dtype} on {s.device}"
            )
        if s.device.type == "meta" and type(s) in (Tensor, torch.nn.Parameter):  # not a fake one
            raise ArgumentError(f"scores[{number}] must hold data, got a tensor on meta")
    if (entries := sum(s.numel() for s in scores)) >= 2**32:
        raise ArgumentError(f"topk_mask takes fewer than 2**32 scores, got {entries}")
    if within is None:
        return
    _check_sequence("within", within)
    if len(within) != len(scores):
        raise ArgumentError(f"within must hold a mask for each of {len(scores)} scores, got {len(within)}")
    for number, (s, w) in enumerate(zip(scores, within, strict=True)):
        if w.dtype != torch.bool or w.shape != s.shape or w.device != s.device or w.layout is not s.layout:
            raise ArgumentError(
                f"within[{number}] must be a dense bool tensor of shape {tuple(s.shape)} on {s.device}, "
                f"got {w.dtype} of shape {tuple(w.shape)} on {w.device}"
            )


def _check_sequence(name: str, tensors: object) -> None:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise ArgumentError(f"{name} must be a sequence of tensors, got {type(tensors).__name__}")
    for number, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise ArgumentError(f"{name}[{number}] must be a tensor, got {type(t).__name__}")


def _is_nan(tensor: int, index: int) -> ArgumentError:
    return ArgumentError(f"scores[{tensor}] holds NaN at flat index {index}; NaN scores have no rank")


def _too_few(k: int, competing: int) -> ArgumentError:
    return ArgumentError(f"k = {k} entries cannot be kept: only {competing} compete")
