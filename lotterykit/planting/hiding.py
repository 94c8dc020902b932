"""How well a planted ticket is hidden in magnitude, layer by layer."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

CELLS = 4096  # of the table that spares most entries a search


class Hiding(TypedDict):
    """Hiding of the planted entries of one tensor; a plain dict that JSON can hold.

    `max_sigma` and `median_sigma`: |planted| / sigma, with sigma the root mean square of the mother's
    tensor before planting (the standard deviation of a zero-mean init; None where it is 0). `auc`: chance
    that a planted entry is larger in magnitude than one that is not, ties counted half: .5 is perfectly
    hidden, 1 is given away (None where every entry is planted).
    """

    max_sigma: float | None
    median_sigma: float | None
    auc: float | None


def hiding(mother: Tensor, planted: Tensor, mask: Tensor) -> Hiding:
    """Compare the `planted` tensor's entries under a bool `mask` (at least one) with the rest of it, and
    with the `mother`'s tensor of the same shape."""
    magnitude = planted.detach().abs().flatten()
    kept = magnitude[mask.flatten()].double().sort().values
    sigma = float(mother.detach().square().mean(dtype=torch.float64).sqrt())
    middle = float(kept.quantile(0.5))
    return Hiding(
        max_sigma=float(kept[-1]) / sigma if sigma > 0 else None,
        median_sigma=middle / sigma if sigma > 0 else None,
        auc=_auc(magnitude, kept.to(magnitude.dtype)),
    )


def _auc(magnitude: Tensor, kept: Tensor) -> float | None:
    """Mann-Whitney: `kept` (sorted) are among the entries `magnitude`; each is compared with the others."""
    others = magnitude.numel() - kept.numel()
    if others == 0:
        return None
    lost = 0.5 * (_below(magnitude, kept) - _below(kept, kept))
    return 1.0 - lost / (others * kept.numel())


def _below(magnitude: Tensor, kept: Tensor) -> int:
    """Summed over the entries: how many of the few `kept` (sorted) lie below, and how many do not exceed it.

    A table of cells settles most entries: in one without a kept value all kept of the cells below are below,
    and the others above. Only the rest is searched, which takes 20 times as long.
    """
    scale = CELLS / float(kept[-1]) if float(kept[-1]) > 0 else math.inf
    if magnitude.numel() <= CELLS or scale > torch.finfo(magnitude.dtype).max:
        return _searched(magnitude, kept)
    cells, own = ((m * scale).clamp_(max=CELLS + 1).int() for m in (magnitude, kept))
    held = torch.bincount(own, minlength=CELLS + 2)
    lower = held.cumsum(0) - held
    settled = torch.bincount(cells, minlength=CELLS + 2) * torch.where(held > 0, 0, 2 * lower)
    return int(settled.sum()) + _searched(magnitude[(held > 0).index_select(0, cells)], kept)


def _searched(magnitude: Tensor, kept: Tensor) -> int:
    return sum(int(torch.bucketize(magnitude, kept, right=right).sum()) for right in (False, True))
