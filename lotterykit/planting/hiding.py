"""How well a planted ticket is hidden in magnitude, layer by layer."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor


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
    # per entry: how many of the few kept lie below it, and how many do not exceed it
    below = torch.bucketize(magnitude, kept).sum() + torch.bucketize(magnitude, kept, right=True).sum()
    inside = torch.bucketize(kept, kept).sum() + torch.bucketize(kept, kept, right=True).sum()
    lost = 0.5 * float(below - inside)
    return 1.0 - lost / (others * kept.numel())
