"""Generated cases of the kernels over many tensors against plain torch (generated.py).

A launch finds its tensors by their addresses, so these are laid beside closed pages here.
"""

import torch
from generated import DTYPES, fenced, main
from lotterykit.kernels import multi_tensor

from lotterykit.ops import dispatch, gem_miner_step_
from lotterykit.ops import masked_copies as copies

SIZES = (0, 1, 7, 8, 9, 100, 2047, 2048, 2049, 5000)


def _equal(got, expected):
    if expected.dtype != torch.bfloat16:
        return torch.equal(got, expected)
    # the interpreter cuts what a GPU rounds
    return torch.allclose(got.double(), expected.double(), rtol=2.0**-7, atol=1e-38)


def _between_pages(rng):
    """The launch of masked copies, its weights, bits and targets beside closed pages."""
    real = multi_tensor.masked_copies

    def launch(weights, bits, targets):
        written = [fenced(t, rng) for t in targets]
        real([fenced(w, rng) for w in weights], [fenced(b, rng) for b in bits], written)
        for target, found in zip(targets, written, strict=True):
            target.copy_(found)

    return launch


def masked_copies(case, draw):
    """Failures of one call."""
    rng, generator = draw.rng, draw.generator
    dtype, wanted = rng.choice(DTYPES), rng.choice([*DTYPES, torch.float64, None])
    shapes = [
        rng.choice([(rng.choice(SIZES),), (3, 2, 5, 4), (4, 0), (7, 33)]) for _ in range(rng.randint(1, 5))
    ]
    weights, masks = [], []
    for shape in shapes:
        w = torch.randn(shape, generator=generator).to(dtype)
        mask = draw.mask(*shape)
        w.masked_fill_(~mask, torch.nan)
        last = len(shape) == 4 and rng.random() < 0.5
        w = w.to(memory_format=torch.channels_last) if last else w
        weights.append(w if rng.random() < 0.8 else torch.stack([w, w], -1)[..., 1])
        masks.append(mask)
    with dispatch.use_backend("triton"):
        got = copies(weights, masks, dtype=wanted)
    with dispatch.use_backend("reference"):
        expected = copies(weights, masks, dtype=wanted)
    same = all(
        _equal(a, b) and a.dtype == b.dtype and a.is_contiguous() == b.is_contiguous()
        for a, b in zip(got, expected, strict=True)
    )
    return [] if same else [f"case {case}, {dtype} to {wanted}: {shapes}"]


def gem_miner_step(case, draw):
    """Failures of one call."""
    rng, generator = draw.rng, draw.generator
    sizes = [rng.choice(SIZES) for _ in range(rng.randint(1, 5))]
    scores, gradients, momenta = (
        [fenced(one(size, generator=generator), rng) for size in sizes]
        for one in (torch.rand, torch.randn, torch.randn)
    )
    active = [fenced(draw.mask(size).contiguous(), rng) for size in sizes]
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
    return [] if fits and frozen and seen else [f"case {case}: {sizes} {options}: {fits} {frozen} {seen}"]


if __name__ == "__main__":
    import random

    multi_tensor.masked_copies = _between_pages(random.Random(0))
    main({"masked_copies": masked_copies, "gem_miner_step": gem_miner_step})
