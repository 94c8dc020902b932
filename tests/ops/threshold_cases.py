"""Generated scores with ties and special values, and the straight-through layer derived anew."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from lotterykit.ops import dispatch, fixed_threshold, score_thresholds
from lotterykit.ops.threshold import Threshold, kept_mask

BACKENDS = ["reference", *(["cpu"] if dispatch.missing("cpu") is None else [])]


def random_scores(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal, tied, constant or special scores, sometimes transposed or strided."""
    kind = rng.choice(["normal", "tied", "constant", "special"])
    strided = torch.randn(*shape, 2, dtype=dtype)[..., 0]
    scores = strided if rng.random() < 0.3 else strided.contiguous()
    if kind == "tied":
        scores = (scores * 2).round() / 2
    elif kind == "constant":
        scores = scores.sign() * 0.25
    elif kind == "special" and scores.numel():
        values = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1.0], dtype=dtype)
        scores = torch.where(torch.rand(shape) < 0.5, values[torch.randint(5, shape)], scores)
    return scores.T.contiguous().T if len(shape) == 2 and rng.random() < 0.3 else scores


def random_threshold(rng: random.Random, scores: Tensor) -> Threshold:
    """Counted in this tensor, counted with another before it, or fixed."""
    kind = rng.choice(["own", "shared", "fixed"])
    if kind == "fixed":
        return fixed_threshold(rng.choice([0.5, 0.0, -1.0, 0.25]), absolute=rng.random() < 0.5)
    k = round(rng.choice([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]) * scores.numel())
    before = [random_scores(rng, (rng.randrange(20),), scores.dtype)] if kind == "shared" else []
    return score_thresholds([*before, scores], k=k, seed=rng.randrange(2**63), absolute=rng.random() < 0.5)[
        -1
    ]


def expected_gradients(product, x, weight, scores, threshold, bias, g):
    """y, dx, dscores by a layer of weights masked beforehand: dS = dW_eff * W (* sign S), all in float64."""
    mask = kept_mask(scores, threshold)
    x, weight, g = x.detach().double().requires_grad_(True), weight.detach().double(), g.double()
    effective = torch.where(mask, weight, 0.0).requires_grad_(True)
    y = product(x, effective, None if bias is None else bias.detach().double())
    dx, deffective = torch.autograd.grad(y, (x, effective), g)
    dscores = deffective * weight
    return y.detach(), dx, dscores * scores.detach().double().sign() if threshold.absolute else dscores
