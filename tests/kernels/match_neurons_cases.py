"""Generated cases of `match_neurons`, which must equal the reference (generated.py)."""

import torch
from generated import main

from lotterykit.ops import dispatch
from lotterykit.ops import match_neurons as op


def match_neurons(case, draw):
    """Sparse or empty targets, equal candidates, now and then more than one block of them."""
    rng, generator = draw.rng, draw.generator
    candidates = rng.choice([0, 1, 1, 2, 3, 9, 40, 1023, 1024, 1030])
    targets, places = rng.randint(0, min(candidates, 7)), rng.choice([0, 1, 2, 7])
    theta = torch.randn(targets, places, generator=generator, dtype=torch.float64)
    theta *= torch.rand(targets, places, generator=generator) < rng.choice([0.0, 0.2, 0.7, 1.0])
    m = torch.randn(candidates, places, generator=generator, dtype=torch.float64)
    kind = rng.choice(["normal", "signs", "zeros", "opposite"])
    m = {"normal": m, "signs": m.sign(), "zeros": m * 0, "opposite": -m.abs()}[kind]
    if kind == "opposite":
        theta = theta.abs()
    theta, m = draw.laid(theta), draw.laid(m)
    with dispatch.use_backend("triton"):
        got = op(theta, m)
    with dispatch.use_backend("reference"):
        want = op(theta, m)
    same = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    return [] if same else [f"{targets} of {candidates}, {places} places, {kind}: {got} instead of {want}"]


if __name__ == "__main__":
    main({"match_neurons": match_neurons})
