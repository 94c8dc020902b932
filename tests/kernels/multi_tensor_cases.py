"""Run in a process of its own with TRITON_INTERPRET=1: kernels over many tensors against plain torch.

Tensors stand next to pages that nobody may touch. Prints one JSON line: {"cases": n, "failures":
[text, ...]}. Arguments: number of cases, seed.
"""

import json
import random
import sys
from pathlib import Path

import torch

from lotterykit.ops import dispatch, gem_miner_step_, masked_copies

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from fenced import fenced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 7, 8, 9, 100, 2047, 2048, 2049, 5000)


def _equal(got, expected):
    if expected.dtype != torch.bfloat16:
        return torch.equal(got, expected)
    # the interpreter cuts what a GPU rounds
    return torch.allclose(got.double(), expected.double(), rtol=2.0**-7, atol=1e-38)


def copies(rng, generator):
    """Failures of one call of `masked_copies`."""
    dtype, wanted = rng.choice(DTYPES), rng.choice([*DTYPES, torch.float64, None])
    shapes = [
        rng.choice([(rng.choice(SIZES),), (3, 2, 5, 4), (4, 0), (7, 33)]) for _ in range(rng.randint(1, 5))
    ]
    weights, masks = [], []
    for shape in shapes:
        w = torch.randn(shape, generator=generator).to(dtype)
        mask = torch.rand(shape, generator=generator) < rng.choice([0.0, 0.1, 0.5, 1.0])
        w.masked_fill_(~mask, torch.nan)
        last = len(shape) == 4 and rng.random() < 0.5
        w = w.to(memory_format=torch.channels_last) if last else fenced(w, rng)
        weights.append(w if rng.random() < 0.8 else torch.stack([w, w], -1)[..., 1])
        masks.append(mask)
    with dispatch.use_backend("triton"):
        got = masked_copies(weights, masks, dtype=wanted)
    with dispatch.use_backend("reference"):
        expected = masked_copies(weights, masks, dtype=wanted)
    same = all(
        _equal(a, b) and a.dtype == b.dtype and a.is_contiguous() == b.is_contiguous()
        for a, b in zip(got, expected, strict=True)
    )
    return [] if same else [f"masked_copies {dtype} to {wanted}: {shapes}"]


def steps(rng, generator):
    """Failures of one call of `gem_miner_step_`."""

    def draw(shape):
        return fenced(torch.randn(shape, generator=generator), rng)

    sizes = [rng.choice(SIZES) for _ in range(rng.randint(1, 5))]
    scores = [fenced(torch.rand(size, generator=generator), rng) for size in sizes]
    gradients, momenta = ([draw(size) for size in sizes] for _ in range(2))
    active = [fenced(torch.rand(size, generator=generator) < 0.7, rng) for size in sizes]
    if rng.random() < 0.3:
        active = None
    else:
        for p, m, on in zip(scores, momenta, active, strict=True):
            p.masked_fill_(~on, 0.0)
            m.masked_fill_(~on, 0.0)
    options = {
        "lr": rng.choice([0.0, 0.1, 3.0]),
        "momentum": rng.choice([0.0, 0.9]),
        "penalty": rng.choice([0.0, 1e-2]),
    }
    plain = [[t.double() for t in tensors] for tensors in (scores, gradients, momenta)]
    versions = [t._version for t in (*scores, *momenta)]
    with dispatch.use_backend("triton"):
        gem_miner_step_(scores, gradients, momenta, active=active, **options)
    with dispatch.use_backend("reference"):
        gem_miner_step_(*plain, active=active, **options)
    close = {"rtol": 1e-6, "atol": 1e-6}
    fits = all(
        torch.allclose(got.double(), want, **close)
        for tensors, wanted in ((scores, plain[0]), (momenta, plain[2]))
        for got, want in zip(tensors, wanted, strict=True)
    )
    frozen = active is None or all(not p[~on].any() for p, on in zip(scores, active, strict=True))
    seen = all(t._version > before for t, before in zip((*scores, *momenta), versions, strict=True))
    return [] if fits and frozen and seen else [f"gem_miner_step_ {sizes} {options}: {fits} {frozen} {seen}"]


def main():
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    failures = []
    for _ in range(cases):
        failures += copies(rng, generator) + steps(rng, generator)
    print(json.dumps({"cases": cases, "failures": failures}))


if __name__ == "__main__":
    main()
