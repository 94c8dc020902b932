"""Which weights a threshold on their scores keeps: `Threshold`, `score_thresholds`, `fixed_threshold`.

Edge-popup keeps the k weights of highest |score|, Gem-Miner those whose score is at least .5; both are one
rule, that of `topk_mask`: score > T, or score == T and h <= H. T and H are two numbers, so nothing as large
as the weights is kept for the backward pass beside the scores themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.ops import dispatch
from lotterykit.ops.guess import Guess
from lotterykit.ops.operands import native, ready
from lotterykit.ops.topk_mask import check_selection, tie_rank, topk_cut_cpu, topk_mask

EVERY_TIE = 2**32 - 1  # the highest tie rank
POSITIONS = 2**32


class Threshold(NamedTuple):
    """Which entries of a score tensor keep their weights: score > T, or score == T with a tie rank <= H.

    `cut`: float64 `[2]`, T and H, on the scores' device; `absolute`: |score| is compared; `seed` and `offset`
    give the tie rank of an entry, `offset` being the flat position of the tensor's first entry among all that
    are ranked together. A NaN is never kept. Made by `score_thresholds` and `fixed_threshold`.
    """

    cut: Tensor
    absolute: bool
    seed: int
    offset: int


def score_thresholds(
    scores: Sequence[Tensor],
    *,
    density: float | None = None,
    k: int | None = None,
    seed: int = 0,
    absolute: bool = True,
    guess: Guess | None = None,
) -> list[Threshold]:
    """The thresholds, one for each tensor, that keep the k highest of all `scores` together.

    `scores`: floating tensors of any shapes, one dtype, one device, fewer than 2**32 entries in all; no
    gradient flows. `density` in (0, 1] means k = round(density * entries). `absolute`: |score| is ranked
    (edge-popup). They keep what `topk_mask` of the same arguments keeps; `guess` as there. Raises
    `ArgumentError` as `topk_mask`, for a NaN too, and inside `torch.func` transforms.

    >>> (one,) = score_thresholds([torch.tensor([3.0, -4.0, 1.0])], k=2)
    >>> kept_mask(torch.tensor([3.0, -4.0, 1.0]), one)
    tensor([ True,  True, False])
    """
    if torch._C._are_functorch_transforms_active():
        raise ArgumentError("score_thresholds does not run inside torch.func transforms: call it outside")
    k = check_selection(scores, density=density, k=k, seed=seed)
    if not scores:
        return []
    plain = [s.detach() for s in scores]
    if guess is None or torch.compiler.is_compiling() or any(type(s) is not Tensor for s in plain):
        cut = score_cut_op(plain, k, seed, absolute)
    else:
        cut = _cut(plain, k, seed, absolute, guess)
    found, offset = [], 0
    for s in scores:
        found.append(Threshold(cut, absolute, seed, offset))
        offset += s.numel()
    return found


def fixed_threshold(
    least: float, *, absolute: bool = False, device: torch.device | str | None = None
) -> Threshold:
    """The threshold that keeps every score of at least `least` (Gem-Miner's: .5).

    >>> kept_mask(torch.tensor([0.4, 0.5, 0.6]), fixed_threshold(0.5))
    tensor([False,  True,  True])
    """
    if isinstance(least, bool) or not isinstance(least, int | float) or least != least:
        raise ArgumentError(f"least must be a number, got {least!r}")
    cut = torch.full((2,), float(EVERY_TIE), dtype=torch.float64, device=device)
    cut[0].fill_(float(least))  # as a tensor from the host it would wait for the device
    return Threshold(cut, absolute, 0, 0)


def kept_mask(scores: Tensor, threshold: Threshold) -> Tensor:
    """The bool mask, shaped as `scores`, of what `threshold` keeps; plain torch, any device."""
    scores = scores.detach()
    ranked = scores.abs() if threshold.absolute else scores
    least, most = threshold.cut[0].to(scores.dtype), threshold.cut[1]
    above, tied = ranked > least, ranked == least
    readable = type(scores) is Tensor and not torch._C._are_functorch_transforms_active()
    if readable and scores.device.type == "cpu":
        if most == EVERY_TIE:
            return above | tied
        flat = above.reshape(-1)  # a new tensor's, so a view or a copy that is ours
        at = tied.reshape(-1).nonzero().squeeze(1)
        flat[at] = tie_rank(at + threshold.offset, threshold.seed) <= most
        return flat.view(scores.shape)
    # A device is not asked how many tie, and a transform or a trace cannot be.
    at = torch.arange(scores.numel(), device=scores.device) + threshold.offset
    return above | (tied & (tie_rank(at, threshold.seed) <= most).view(scores.shape))


@torch.library.custom_op("lotterykit::score_cut", mutates_args=())
def score_cut_op(scores: Sequence[Tensor], k: int, seed: int, absolute: bool) -> Tensor:
    """T and H of `Threshold.cut`, without validation."""
    return _cut(scores, k, seed, absolute, None)


@score_cut_op.register_fake
def _(scores: Sequence[Tensor], k: int, seed: int, absolute: bool) -> Tensor:
    return scores[0].new_empty(2, dtype=torch.float64)


def _cut(scores: Sequence[Tensor], k: int, seed: int, absolute: bool, guess: Guess | None) -> Tensor:
    ranked = [s.abs() for s in scores] if absolute else list(scores)
    call = dispatch.Call("topk_mask", ranked[0].device.type, ranked[0].dtype)
    if dispatch.select(call).backend == "cpu":
        return torch.tensor(topk_cut_cpu(ranked, k=k, seed=seed, guess=guess)[1:], dtype=torch.float64)
    return _cut_of_masks(ranked, topk_mask(ranked, k=k, seed=seed), seed)


def _cut_of_masks(ranked: list[Tensor], masks: list[Tensor], seed: int) -> Tensor:
    """T and H: the lowest score kept, and the highest tie rank kept at it, or EVERY_TIE where all that tie
    are kept, so that kernels need not rank; nothing kept: infinity and -1."""
    device = ranked[0].device
    least = torch.full((), torch.inf, dtype=ranked[0].dtype, device=device)
    for s, mask in zip(ranked, masks, strict=True):
        if s.numel():
            least = torch.minimum(least, torch.where(mask, s, torch.inf).min())
    most, offset = torch.full((), -1, device=device), 0
    dropped = torch.full((), False, device=device)
    for s, mask in zip(ranked, masks, strict=True):
        if s.numel():
            ranks = tie_rank(torch.arange(s.numel(), device=device) + offset, seed).view(s.shape)
            most = torch.maximum(most, torch.where(mask & (s == least), ranks, -1).max())
            dropped = dropped | (~mask & (s == least)).any()
        offset += s.numel()
    most = torch.where(dropped | (most < 0), most, EVERY_TIE)
    return torch.stack([least.double(), most.double()])


def check_threshold(op: str, threshold: object, scores: Tensor) -> None:
    """Raises `ArgumentError` unless `threshold` is a Threshold for these scores."""
    if not isinstance(threshold, Threshold):
        raise ArgumentError(f"{op}: threshold must be a Threshold, got {type(threshold).__name__}")
    cut = threshold.cut
    if not isinstance(cut, Tensor) or cut.dtype != torch.float64 or tuple(cut.shape) != (2,):
        got = f"{cut.dtype} {tuple(cut.shape)}" if isinstance(cut, Tensor) else type(cut).__name__
        raise ArgumentError(f"{op}: threshold.cut must be float64 [2], got {got}")
    if cut.device != scores.device:
        raise ArgumentError(f"{op}: threshold.cut is on {cut.device}, but the scores on {scores.device}")
    check_seed(threshold.seed)
    if not 0 <= threshold.offset <= POSITIONS - scores.numel():
        raise ArgumentError(
            f"{op}: threshold.offset must lie in [0, {POSITIONS - scores.numel()}], got {threshold.offset}"
        )


class Kept:
    """The weights that a threshold keeps, by lotterykit._cpu: their bits, the weight under them, or a CSR.

    scores and weight: CPU tensors of one dtype, float32 or float64, of one shape `[out, ...]`, read as
    `[out, rest]`. `nnz`: kept weights. `isa` is there for tests.
    """

    def __init__(self, scores: Tensor, threshold: Threshold, *, isa: str = "best") -> None:
        self.isa, self.threads = isa, torch.get_num_threads()
        self.scores = ready(scores)
        self.rows = scores.shape[0]
        self.columns = math.prod(scores.shape[1:])
        self.bits = scores.new_empty((self.rows, -(-self.columns // 8)), dtype=torch.uint8)
        self.row_offsets = scores.new_empty(self.rows + 1, dtype=torch.int32)
        least, most = threshold.cut.tolist()
        cut = least, int(most), threshold.absolute, threshold.seed, threshold.offset % POSITIONS
        self.nnz: int = self._native("kept_bits")(
            self.scores.data_ptr(),
            self.rows,
            self.columns,
            cut,
            self.bits.data_ptr(),
            self.row_offsets.data_ptr(),
            self.threads,
            isa,
        )

    def _native(self, name: str) -> Any:
        wide = self.scores.dtype == torch.float64
        return getattr(native(), f"{name}_{'float64' if wide else 'float32'}")

    @property
    def density(self) -> float:
        """Kept / total; 1 for an empty weight."""
        return self.nnz / self.scores.numel() if self.scores.numel() else 1.0

    def dense(self, weight: Tensor) -> Tensor:
        """weight where kept, else 0; contiguous."""
        weight = ready(weight)
        out = torch.empty_like(weight)
        self._native("expand_bits")(
            self.bits.data_ptr(),
            weight.data_ptr(),
            self.rows,
            self.columns,
            out.data_ptr(),
            self.threads,
            self.isa,
        )
        return out

    def compressed(self, weight: Tensor, *, transposed: bool = False) -> tuple[Tensor, list[Tensor]]:
        """values `[nnz]` and a structure in the form of `CSR.tensors`, of one column block; only with
        `transposed` is the part of the transpose filled."""
        weight = ready(weight)
        columns = self.row_offsets.new_empty(self.nnz)
        values = weight.new_empty(self.nnz)
        self._native("compress_bits")(
            self.bits.data_ptr(),
            weight.data_ptr(),
            self.rows,
            self.columns,
            self.row_offsets.data_ptr(),
            columns.data_ptr(),
            values.data_ptr(),
            self.threads,
            self.isa,
        )
        column_offsets = columns.new_empty(self.columns + 1)
        rows, order = (columns.new_empty(self.nnz if transposed else 0) for _ in range(2))
        if transposed:
            native().transpose_structure(
                self.row_offsets.data_ptr(),
                columns.data_ptr(),
                self.rows,
                self.columns,
                column_offsets.data_ptr(),
                rows.data_ptr(),
                order.data_ptr(),
            )
        offsets = self.row_offsets
        return values, [offsets, columns, offsets, column_offsets, rows, column_offsets, order]

    def score_gradient(self, dweight: Tensor, weight: Tensor, absolute: bool) -> Tensor:
        """The scores' straight-through gradient from `dweight`, that of the effective weights, in its place
        where it is contiguous."""
        dweight, weight = ready(dweight), ready(weight)
        self._native("straight_through")(
            dweight.data_ptr(),
            weight.data_ptr(),
            self.scores.data_ptr() if absolute else 0,
            dweight.numel(),
            self.threads,
            self.isa,
        )
        return dweight
