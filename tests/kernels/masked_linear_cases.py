"""Run in a process of its own with TRITON_INTERPRET=1: generated cases of the kernels against float64.

Prints one JSON line: {"cases": n, "failures": [text, ...]}. Arguments: number of cases, seed.
"""

import json
import sys

import torch
from lotterykit.kernels.masked_linear import PRODUCTS

from lotterykit.ops.formats import pack_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64, 65, 70, 129, 150)


def tensor(rows, columns, dtype, generator):
    """Random `[rows, columns]`, one time in three each: contiguous, transposed, a strided slice."""
    layout = int(torch.randint(0, 3, (), generator=generator))
    if layout == 1:
        return torch.randn(columns, rows, generator=generator).to(dtype).T
    if layout == 2:
        return torch.randn(2 * rows + 1, columns + 3, generator=generator).to(dtype)[1::2, 1 : 1 + columns]
    return torch.randn(rows, columns, generator=generator).to(dtype)


def mismatch(got, a, b, terms, bias=None, mask=None):
    """The worst error over the bound (terms + 1) * eps * sum |products|, plus the rounding of the output."""
    a, b = a.double(), b.double()
    expected, magnitude = a @ b, a.abs() @ b.abs()
    if bias is not None:
        expected, magnitude, terms = expected + bias.double(), magnitude + bias.double().abs(), terms + 1
    if mask is not None:
        expected = torch.where(mask, expected, 0.0)
    bound = (terms + 1) * torch.finfo(torch.float32).eps * magnitude
    if got.dtype != torch.float32:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (expected.abs() + bound) + finfo.tiny
    excess = (got.double() - expected).abs() - bound
    if got.shape != expected.shape or not got.isfinite().all():
        return f"shape {tuple(got.shape)}, finite {bool(got.isfinite().all())}"
    return f"{float(excess.max()):g} over the bound" if excess.numel() and excess.max() > 0 else None


def run(case, generator):
    """One case: shapes, layouts, density, poison in pruned weights; the failures of the three products."""
    batch, n_in, n_out = (SIZES[int(torch.randint(0, len(SIZES), (), generator=generator))] for _ in range(3))
    dtype = DTYPES[case % 3]
    x, g, weight = (tensor(*s, dtype, generator) for s in ((batch, n_in), (batch, n_out), (n_out, n_in)))
    density = float(torch.rand((), generator=generator)) if case % 5 else float(case % 2)
    mask = torch.rand(n_out, n_in, generator=generator) < density
    kept = torch.where(mask, weight, 0.0)
    weight.masked_fill_(~mask, float("nan"))
    bias = torch.randn(2 * n_out, generator=generator).to(dtype)[::2] if case % 2 else None
    forward, dx, dw = PRODUCTS
    bits = pack_bits(mask)
    found = {
        "forward": mismatch(forward(x, weight, bits, bias), x, kept.T, mask.sum(1), bias),
        "dx": mismatch(dx(g, weight, bits), g, kept, mask.sum(0)),
    }
    got = dw(g, x, bits)
    found["dw"] = mismatch(got, g.T, x, batch, mask=mask)
    if (got[~mask] != 0).any():
        found["dw"] = "a pruned weight has a gradient"
    where = f"case {case}: batch {batch}, in {n_in}, out {n_out}, {dtype}, density {density:.2f}"
    return [f"{name}: {what} ({where})" for name, what in found.items() if what]


def main():
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    generator = torch.Generator().manual_seed(seed)
    failures = [failure for case in range(cases) for failure in run(case, generator)]
    print(json.dumps({"cases": cases, "failures": failures}))


if __name__ == "__main__":
    main()
