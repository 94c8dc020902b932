"""Levels of iterative magnitude pruning: each drops a share of the weights that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed, unknown_name
from lotterykit.mask import Masks
from lotterykit.ops.topk_mask import topk_mask
from lotterykit.pruning.prune import SCOPES, tie_seed


def level_masks(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    fractions: Mapping[str, float],
    *,
    scope: str = "local",
    seed: int = 0,
) -> Masks:
    """The masks of the next level: without the share `fractions[name]`, in [0, 1), of the kept weights that
    score lowest (P4's prune fractions; its score is the trained magnitude).

    masks, scores: parameter name -> bool and floating tensors of one shape; scores of pruned weights carry no
    meaning. scope: "local" keeps round((1 - fraction) * kept) of each tensor, "global" of all tensors with a
    fraction above 0 together, which must then be equal; a tensor with fraction 0 stays as it is and needs no
    score. At least one weight stays where one was: a tensor with one kept weight keeps it (local), the last
    one of all tensors stays ("global", where single tensors may become empty). Ties go by `seed`; take
    another for each level. Raises `ArgumentError` for missing or unknown names, shapes that differ,
    fractions outside [0, 1) and NaN scores of kept weights.

    >>> import torch
    >>> m = {"fc": torch.tensor([True, True, True, False])}
    >>> level_masks(m, {"fc": torch.tensor([3.0, 1.0, 2.0, 9.0])}, {"fc": 0.3})["fc"]
    tensor([ True, False,  True, False])
    """
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)
    seed, carried = check_seed(seed), Masks(masks)
    _check(carried, scores, fractions)
    cut = [name for name in carried if fractions[name] > 0]
    if scope == "global" and len({fractions[name] for name in cut}) > 1:
        got = ", ".join(f"{name} {fractions[name]:g}" for name in cut)
        raise ArgumentError(f'scope="global" drops one fraction of all tensors together, got {got}')
    groups = []
    for names in [[name] for name in cut] if scope == "local" else [cut] if cut else []:
        kept = sum(int(carried[name].count_nonzero()) for name in names)
        left = max(min(kept, 1), round((1.0 - fractions[names[0]]) * kept))
        groups.append((names, left, tie_seed(seed, 0, names[0])))
    return best_kept(carried, scores, groups)


def best_kept(
    masks: Masks, scores: Mapping[str, Tensor], groups: Sequence[tuple[Sequence[str], int, int]]
) -> Masks:
    """The masks with only the highest scores of each group, of those that `masks` keep.

    groups: (names that are ranked together, how many of them to keep, seed of their ties); tensors of no
    group keep what they have. Raises `ArgumentError` for a NaN among the scores and for too high a number."""
    found = dict(masks)
    for names, count, seed in groups:
        try:
            chosen = topk_mask(
                [scores[name] for name in names],
                k=count,
                seed=seed,
                within=[masks[name] for name in names],
            )
        except ArgumentError as error:
            raise ArgumentError(f"scores of {', '.join(names)}: {error}") from error
        found.update(zip(names, chosen, strict=True))
    return Masks(found)


def _check(masks: Masks, scores: Mapping[str, Tensor], fractions: Mapping[str, float]) -> None:
    for name in fractions:
        if name not in masks:
            raise unknown_name("tensor with a fraction", name, masks)
    for name, mask in masks.items():
        if name not in fractions:
            raise ArgumentError(f"fractions hold none for {name}: 0 leaves a tensor as it is")
        fraction = fractions[name]
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 <= fraction < 1.0:
            raise ArgumentError(
                f"the fraction of {name} is the share of its kept weights to drop, in [0, 1), "
                f"got {fraction!r}"
            )
        if fraction == 0:
            continue
        if name not in scores:
            raise ArgumentError(f"{name} is to lose weights, but scores hold none for it")
        if not isinstance(scores[name], Tensor) or scores[name].shape != mask.shape:
            got = getattr(scores[name], "shape", type(scores[name]).__name__)
            raise ArgumentError(
                f"the scores of {name} must be a tensor of shape {list(mask.shape)}, got {got}"
            )
