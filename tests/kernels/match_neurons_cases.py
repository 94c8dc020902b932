"""Run in a process of its own with TRITON_INTERPRET=1: cases of `match_neurons`, equal to the reference.

Prints one JSON line: {"cases": n, "failures": [text, ...]}. Arguments: number of cases, seed.
"""

import json
import random
import sys

import torch

from lotterykit.ops import dispatch, match_neurons


def run(rng, generator):
    """The failures of one case: sparse or empty targets, equal candidates, more than one block of them."""
    candidates = rng.choice([1, 3, 40, 1023, 1024, 1030])
    targets, places = rng.randint(0, min(candidates, 12)), rng.choice([0, 1, 2, 7])
    theta = torch.randn(targets, places, generator=generator, dtype=torch.float64)
    theta *= torch.rand(targets, places, generator=generator) < rng.choice([0.2, 0.7, 1.0])
    m = torch.randn(candidates, places, generator=generator, dtype=torch.float64)
    kind = rng.choice(["normal", "signs", "zeros", "opposite"])
    m = {"normal": m, "signs": m.sign(), "zeros": m * 0, "opposite": -m.abs()}[kind]
    if kind == "opposite":
        theta = theta.abs()
    with dispatch.use_backend("triton"):
        got = match_neurons(theta, m)
    with dispatch.use_backend("reference"):
        want = match_neurons(theta, m)
    same = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    return [] if same else [f"{targets} of {candidates}, {places} places, {kind}: {got} instead of {want}"]


def main():
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    failures = [failure for _ in range(cases) for failure in run(rng, generator)]
    print(json.dumps({"cases": cases, "failures": failures}))


if __name__ == "__main__":
    main()
