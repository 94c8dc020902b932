"""Run in a process of its own with TRITON_INTERPRET=1: `synflow_scores` of chains beside closed pages.

Prints one JSON line: {"cases": n, "failures": [text, ...]}. Arguments: number of cases, seed.
"""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import torch

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch, synflow_masks, synflow_scores
from lotterykit.ops.synflow_masks import Counted

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from fenced import fenced


def chain(rng, generator):
    """weights, masks and biases: deep, of huge or tiny numbers, with dead layers, transposed."""
    depth, dtype = rng.randint(1, 6), rng.choice([torch.float32, torch.float64])
    widths = [rng.choice([0, 1, 2, 7, 8, 9, 65, 257, 300]) for _ in range(depth + 1)]
    size = rng.choice([1.0, 1e-30, 1e30])
    weights, masks, biases = [], [], []
    for n_in, n_out in pairwise(widths):
        w = torch.randn(n_out, n_in, generator=generator).to(dtype) * size
        mask = torch.rand(n_out, n_in, generator=generator) < rng.choice([0.05, 0.5, 1.0])
        w = torch.where(mask, w, torch.nan)
        weights.append(w.T.contiguous().T if rng.random() < 0.3 else fenced(w, rng))
        masks.append(fenced(mask, rng))
        bias = torch.randn(n_out, generator=generator).to(dtype) * rng.choice([0.0, 1.0, 1e-38])
        biases.append(fenced(bias, rng) if rng.random() < 0.4 else None)
    return weights, masks, biases


def run(rng, generator):
    """The failures of one case."""
    weights, masks, biases = chain(rng, generator)
    if rng.random() < 0.3:
        weights = [torch.where(m, w, 0.0) for w, m in zip(weights, masks, strict=True)]
        masks = None
    results = []
    for backend in ("triton", "reference"):
        with dispatch.use_backend(backend):
            results.append(synflow_scores(weights, masks=masks, biases=biases))
    fits = all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=0.0)
        for a, b in zip(*results, strict=True)
    )
    shapes = [tuple(w.shape) for w in weights]
    return [] if fits else [f"{shapes}, {weights[0].dtype}, masks {masks is not None}: {results}"]


def rounds(rng, generator):
    """Failures of some rounds of pruning a chain, whose masks must be the reference's."""
    weights, masks, _ = chain(rng, generator)
    most = sum(int(m.sum()) for m in masks)
    counts = [[Counted(tuple(range(len(weights))), round(most * share), 5)] for share in (0.6, 0.3, 0.1)]
    with dispatch.use_backend("triton", ops=["synflow_masks"]):
        got = synflow_masks(weights, counts, masks=masks)
    with dispatch.use_backend("reference"):
        want = synflow_masks(weights, counts, masks=masks)
    same = all(torch.equal(a, b) for a, b in zip(got.masks, want.masks, strict=True))
    same &= torch.equal(got.kept, want.kept) and torch.equal(got.live, want.live)
    return [] if same else [f"rounds of {[tuple(w.shape) for w in weights]}"]


def refused():
    """Failures to refuse a kept infinity as the reference does."""
    weights = [torch.ones(3, 2), torch.ones(2, 3)]
    weights[1][0, 2] = torch.inf
    try:
        with dispatch.use_backend("triton"):
            synflow_scores(weights)
    except ArgumentError as error:
        return [] if "weights[1] holds infinities" in str(error) else [str(error)]
    return ["a kept infinity was accepted"]


def main():
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    failures = [failure for _ in range(cases) for failure in run(rng, generator)] + refused()
    for _ in range(cases // 4):
        failures += rounds(rng, generator)
    print(json.dumps({"cases": cases, "failures": failures}))


if __name__ == "__main__":
    main()
