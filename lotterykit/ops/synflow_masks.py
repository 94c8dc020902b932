"""`synflow_masks`: all rounds of SynFlow on a chain of fully connected layers in one call.

Natively (csrc/cpu/synflow.cpp) pruned weights are compacted away after each round, and the threshold of one
round is the first guess of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed
from lotterykit.ops.dispatch import Call, load, select
from lotterykit.ops.synflow_scores import (
    addresses,
    check_finite,
    checked_chain,
    native_flow,
    overflow,
    synflow_scores_reference,
)
from lotterykit.ops.synflow_triton import chain_scores
from lotterykit.ops.topk_mask import topk_mask, topk_mask_reference


class Counted(NamedTuple):
    """Layers that are counted together: their indices, how many of their weights stay, the seed of ties."""

    layers: tuple[int, ...]
    kept: int
    seed: int = 0


class Rounds(NamedTuple):
    """What `synflow_masks` leaves: masks of the last round; after each round the kept weights of each layer,
    int64 `[rounds, layers]`, and whether kept weights lead from an input to an output, bool `[rounds]`."""

    masks: list[Tensor]
    kept: Tensor
    live: Tensor


def synflow_masks(
    weights: Sequence[Tensor],
    rounds: Sequence[Sequence[Counted]],
    *,
    masks: Sequence[Tensor] | None = None,
    biases: Sequence[Tensor | None] | None = None,
) -> Rounds:
    """Rounds of scoring by `synflow_scores` and keeping the highest; pruned weights never return.

    weights, masks, biases: as there. rounds: for each round the groups that are counted together; a layer
    that stands in no group is not pruned. Ties go by `tie_rank` over the group's flat positions, as in
    `topk_mask`, and scores are compared as `rounded`. Raises `ArgumentError`.

    >>> synflow_masks([torch.tensor([[1.0, -3.0]])], [[Counted((0,), 1)]]).masks
    [tensor([[False,  True]])]
    """
    weights, masks, biases = checked_chain(weights, masks, biases)
    _check_rounds(weights, masks, rounds)
    plain = [w.detach() for w in weights]
    route = select(call_of(plain))
    if route.backend == "triton":
        return _by_kernels(load(route), plain, rounds, masks, biases)
    return load(route)(plain, rounds, masks, biases)  # type: ignore[return-value]


def synflow_masks_reference(
    weights: Sequence[Tensor],
    rounds: Sequence[Sequence[Counted]],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> Rounds:
    """`synflow_masks` in plain torch, on any device: a score and a `topk_mask` each round."""
    return _rounds(weights, rounds, masks, biases, synflow_scores_reference, topk_mask_reference)


def _by_kernels(
    kernels: object,
    weights: Sequence[Tensor],
    rounds: Sequence[Sequence[Counted]],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> Rounds:
    """The rounds with the scores by `synflow_scores`' kernels, the selection by what serves `topk_mask`."""

    def score(
        weights: Sequence[Tensor], masks: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> list[Tensor]:
        def refuse(reach: float) -> Exception:
            check_finite(weights, masks)
            return overflow(reach)

        return chain_scores(kernels, weights, masks, biases, refuse)

    return _rounds(weights, rounds, masks, biases, score, topk_mask)


def _rounds(
    weights: Sequence[Tensor],
    rounds: Sequence[Sequence[Counted]],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    score: Callable[..., list[Tensor]],
    choose: Callable[..., list[Tensor]],
) -> Rounds:
    """Each round scores the kept weights and chooses among them."""
    current = [m.clone() for m in masks] or [torch.ones_like(w, dtype=torch.bool) for w in weights]
    kept, live = [], []
    for groups in rounds:
        found = score(weights, current, biases)
        for group in groups:
            within = [current[i] for i in group.layers]
            scores = [rounded(found[i]) for i in group.layers]
            k = min(group.kept, sum(int(w.sum()) for w in within))
            chosen = choose(scores, k=k, seed=group.seed, within=within)
            for i, mask in zip(group.layers, chosen, strict=True):
                current[i] = mask
        kept.append([int(m.sum()) for m in current])
        reached = torch.ones(current[0].shape[1], dtype=torch.bool, device=current[0].device)
        for mask in current:
            reached = (mask & reached).any(1)
        live.append(bool(reached.any()))
    shape = len(rounds), len(current)
    return Rounds(current, torch.tensor(kept, dtype=torch.int64).reshape(shape), torch.tensor(live).bool())


def rounded(scores: Tensor) -> Tensor:
    """Float64 scores to 32 significant bits: weights in series on one path tie in exact arithmetic, and
    rounding errors must not tell them apart in place of the seed."""
    scores = scores.contiguous()
    bits = (scores.view(torch.int64) + (1 << 19)) & ~((1 << 20) - 1)
    return torch.where(scores.isfinite(), bits.view(torch.float64), scores)


def synflow_masks_cpu(
    weights: Sequence[Tensor],
    rounds: Sequence[Sequence[Counted]],
    masks: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    isa: str = "best",
) -> Rounds:
    """`synflow_masks` through lotterykit._cpu on one thread; `isa` is there for tests."""
    flow, offsets = native_flow(weights, masks, biases, isa)
    kept = torch.empty(len(rounds), len(weights), dtype=torch.int64)
    live = torch.empty(len(rounds), dtype=torch.bool)
    counts = [[(list(g.layers), g.kept, g.seed) for g in groups] for groups in rounds]
    if flow.chain(addresses(offsets), counts, kept.data_ptr(), live.data_ptr()) != "ok":
        raise overflow(float("inf"))
    found = [torch.empty(w.shape, dtype=torch.bool) for w in weights]
    for i, mask in enumerate(found):
        flow.write_mask(i, mask.data_ptr())
    return Rounds(found, kept, live)


def call_of(weights: Sequence[Tensor], *_: object, **__: object) -> Call:
    """What dispatch may know of `synflow_masks(...)`."""
    return Call("synflow_masks", weights[0].device.type, weights[0].dtype)


def _check_rounds(
    weights: Sequence[Tensor], masks: Sequence[Tensor], rounds: Sequence[Sequence[Counted]]
) -> None:
    counts = [int(m.sum()) for m in masks] or [w.numel() for w in weights]
    for number, groups in enumerate(rounds, start=1):
        seen: set[int] = set()
        for group in groups:
            if not isinstance(group, Counted):
                raise ArgumentError(f"synflow: round {number} must hold Counted groups, got {group!r}")
            check_seed(group.seed)
            if not all(type(i) is int and 0 <= i < len(weights) for i in group.layers) or seen & set(
                group.layers
            ):
                raise ArgumentError(
                    f"synflow: round {number} names layers {group.layers}: each of 0..{len(weights) - 1} "
                    "may stand in one group only"
                )
            if len(set(group.layers)) < len(group.layers):
                raise ArgumentError(f"synflow: round {number} counts a layer twice: {group.layers}")
            seen |= set(group.layers)
            if sum(weights[i].numel() for i in group.layers) >= 2**32:
                raise ArgumentError("synflow: fewer than 2**32 weights are counted together")
            most = sum(counts[i] for i in group.layers)
            if isinstance(group.kept, bool) or not isinstance(group.kept, int) or not 0 <= group.kept <= most:
                raise ArgumentError(
                    f"synflow: round {number} keeps {group.kept!r} of layers {group.layers}, "
                    f"which must lie in 0..{most}"
                )
