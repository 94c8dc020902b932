"""Generated cases of SynFlow's scores and rounds against the float64 reference (generated.py)."""

from itertools import pairwise

import torch
from generated import main

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops import synflow_masks as masks_op
from lotterykit.ops import synflow_scores as scores_op
from lotterykit.ops.synflow_masks import Counted


def _chain(draw):
    """weights, masks and biases: deep, of huge or tiny numbers, with dead layers, transposed."""
    rng, generator = draw.rng, draw.generator
    depth, dtype = rng.choice([1, 1, 2, 2, 3]), rng.choice([torch.float32, torch.float64])
    widths = [rng.choice([0, 1, 1, 2, 7, 8, 9, 17]) for _ in range(depth + 1)]
    if rng.random() < 0.1:
        widths[rng.randrange(depth + 1)] = rng.choice([65, 257])  # several programs, or steps
    size = rng.choice([1.0, 1e-30, 1e30])
    weights, masks, biases = [], [], []
    for n_in, n_out in pairwise(widths):
        w = torch.randn(n_out, n_in, generator=generator).to(dtype) * size
        mask = draw.mask(n_out, n_in)
        weights.append(draw.laid(torch.where(mask, w, torch.nan)))
        masks.append(mask)
        bias = torch.randn(n_out, generator=generator).to(dtype) * rng.choice([0.0, 1.0, 1e-38])
        biases.append(draw.laid(bias) if rng.random() < 0.4 else None)
    return weights, masks, biases


def synflow_scores(case, draw):
    """The failures of one case; the last ones are refusals."""
    if case % 50 == 49:
        return _refused()
    weights, masks, biases = _chain(draw)
    if draw.rng.random() < 0.3:
        weights = [torch.where(m, w, 0.0) for w, m in zip(weights, masks, strict=True)]
        masks = None
    results = []
    for backend in ("triton", "reference"):
        with dispatch.use_backend(backend):
            results.append(scores_op(weights, masks=masks, biases=biases))
    fits = all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=0.0)
        for a, b in zip(*results, strict=True)
    )
    shapes = [tuple(w.shape) for w in weights]
    return [] if fits else [f"{shapes}, {weights[0].dtype}, masks {masks is not None}: {results}"]


def synflow_masks(case, draw):
    """Failures of some rounds of pruning a chain, whose masks must be the reference's."""
    weights, masks, _ = _chain(draw)
    most = sum(int(m.sum()) for m in masks)
    shares = (0.6, 0.3, 0.1)[: draw.rng.choice([1, 1, 2, 3])]
    counts = [[Counted(tuple(range(len(weights))), round(most * share), 5)] for share in shares]
    with dispatch.use_backend("triton", ops=["synflow_masks"]):
        got = masks_op(weights, counts, masks=masks)
    with dispatch.use_backend("reference"):
        want = masks_op(weights, counts, masks=masks)
    same = all(torch.equal(a, b) for a, b in zip(got.masks, want.masks, strict=True))
    same &= torch.equal(got.kept, want.kept) and torch.equal(got.live, want.live)
    return [] if same else [f"case {case}: rounds of {[tuple(w.shape) for w in weights]}"]


def _refused():
    """Failures to refuse a kept infinity as the reference does."""
    weights = [torch.ones(3, 2), torch.ones(2, 3)]
    weights[1][0, 2] = torch.inf
    try:
        with dispatch.use_backend("triton"):
            scores_op(weights)
    except ArgumentError as error:
        return [] if "weights[1] holds infinities" in str(error) else [str(error)]
    return ["a kept infinity was accepted"]


if __name__ == "__main__":
    main({"synflow_scores": synflow_scores, "synflow_masks": synflow_masks})
