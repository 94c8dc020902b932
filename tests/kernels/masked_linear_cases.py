"""Generated cases of `masked_linear`, by its three products, against float64 (generated.py)."""

import torch
from generated import DTYPES, excess, main
from lotterykit.kernels.masked_linear import PRODUCTS

from lotterykit.ops.formats import pack_bits

SIZES = (0, 1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64, 65, 70)


def masked_linear(case, draw):
    """Shapes, layouts, density, poison in pruned weights; the failures of the three products."""
    batch, n_in, n_out = (draw.rng.choice(SIZES) for _ in range(3))
    if draw.rng.random() < 0.05:
        n_in = 150  # several steps of a tile
    dtype = DTYPES[case % 3]
    x, g, weight = (draw.normal(*s, dtype=dtype) for s in ((batch, n_in), (batch, n_out), (n_out, n_in)))
    mask = draw.mask(n_out, n_in)
    kept = torch.where(mask, weight, 0.0)
    weight.masked_fill_(~mask, float("nan"))
    bias = draw.normal(n_out, dtype=dtype) if case % 2 else None
    forward, dx, dw = PRODUCTS
    bits = pack_bits(mask)
    found = {
        "forward": _mismatch(forward(x, weight, bits, bias), x, kept.T, mask.sum(1), bias),
        "dx": _mismatch(dx(g, weight, bits), g, kept, mask.sum(0)),
    }
    got = dw(g, x, bits)
    found["dw"] = _mismatch(got, g.T, x, batch, mask=mask)
    if (got[~mask] != 0).any():
        found["dw"] = "a pruned weight has a gradient"
    where = f"case {case}: batch {batch}, in {n_in}, out {n_out}, {dtype}, kept {int(mask.sum())}"
    return [f"{name}: {what} ({where})" for name, what in found.items() if what]


def _mismatch(got, a, b, terms, bias=None, mask=None):
    a, b = a.double(), b.double()
    expected, magnitude = a @ b, a.abs() @ b.abs()
    if bias is not None:
        expected, magnitude, terms = expected + bias.double(), magnitude + bias.double().abs(), terms + 1
    if mask is not None:
        expected = torch.where(mask, expected, 0.0)
    return excess(got, expected, magnitude, terms)


if __name__ == "__main__":
    main({"masked_linear": masked_linear})
