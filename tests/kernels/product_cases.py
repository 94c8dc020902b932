"""Run in a process of its own with TRITON_INTERPRET=1: generated cases of the implicit GEMM against float64.

Convolutions and linear layers by bits, scores or |scores|, operands next to pages that nobody may touch.
Prints one JSON line: {"cases": n, "failures": [text, ...]}. Arguments: number of cases, seed.
"""

import json
import random
import sys
from pathlib import Path

import torch
from lotterykit.kernels import masked_conv2d, threshold

from lotterykit.ops.conv_geometry import geometry_of, of_torch, out_size
from lotterykit.ops.formats import pack_bits
from lotterykit.ops.threshold import fixed_threshold, kept_mask, score_thresholds
from lotterykit.ops.topk_mask import seed_words

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from fenced import fenced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Draw:
    """Random tensors in either memory format, transposed, strided or next to a closed page."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def laid(self, x):
        """A copy that lies elsewhere or otherwise in memory."""
        kind = self.rng.choice(["fenced", "fenced", "last", "strided", "turned"])
        if kind == "last" and x.dim() == 4:
            return fenced(x.permute(0, 2, 3, 1).contiguous(), self.rng).permute(0, 3, 1, 2)
        if kind == "strided":
            return torch.stack([x, x], -1)[..., 0]
        if kind == "turned" and x.dim() > 1:
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        return fenced(x.contiguous(), self.rng)

    def normal(self, *shape, dtype=torch.float32):
        return self.laid(torch.randn(shape, generator=self.generator).to(dtype))

    def scores(self, shape, dtype):
        """Scores and a threshold: normal, tied or with special values; counted, fixed, of several tensors."""
        scores = torch.randn(shape, generator=self.generator).to(dtype)
        kind = self.rng.choice(["normal", "tied", "constant", "special"])
        if kind == "tied":
            scores = (scores * 2).round() / 2
        elif kind == "constant":
            scores = scores.sign() * 0.25
        elif kind == "special":
            values = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1.0], dtype=dtype)
            scores = values[torch.randint(5, shape, generator=self.generator)]
        absolute, seed = self.rng.random() < 0.5, self.rng.randrange(2**63)
        if self.rng.random() < 0.3:
            chosen = fixed_threshold(self.rng.choice([0.5, 0.0, -0.3]), absolute=absolute)
        else:
            before = [torch.randn(self.rng.randrange(20), generator=self.generator).to(dtype)]
            total = sum(s.numel() for s in (before[0], scores))
            k = round(self.rng.choice([0.0, 0.1, 0.5, 1.0]) * total)
            chosen = score_thresholds([*before, scores], k=k, seed=seed, absolute=absolute)[1]
        if scores.numel() and self.rng.random() < 0.2:
            scores.view(-1)[0] = torch.nan  # never kept, and its gradient is its own affair
        return self.laid(scores), chosen


def products(x, weight, g, geometry):
    """y, dx, dw of a dense layer, linear where `geometry` is empty."""
    x, weight = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    if geometry:
        images, rest = of_torch(x, geometry)
        y = torch.nn.functional.conv2d(images, weight, None, *rest)
    else:
        y = torch.nn.functional.linear(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), g)


def excess(got, expected, magnitude, terms):
    """What is wrong, by the bound (terms + 1) * eps * sum |products|, plus the rounding of the output."""
    bound = (terms + 1) * torch.finfo(torch.float32).eps * magnitude
    if got.dtype != torch.float32:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (expected.abs() + bound) + finfo.tiny
    if got.shape != expected.shape or not got.isfinite().all():
        return f"shape {tuple(got.shape)}, finite {bool(got.isfinite().all())}"
    over = (got.double() - expected).abs() - bound
    return f"{float(over.max()):g} over the bound" if over.numel() and over.max() > 0 else None


def problem(draw):
    """Shapes of x and weight, and the geometry, [] for a linear layer."""
    rng = draw.rng
    if rng.random() < 0.35:
        sizes = (0, 1, 2, 7, 8, 9, 16, 17, 33, 65, 130)
        batch, n_in, n_out = (rng.choice(sizes) for _ in range(3))
        return (batch, n_in), (n_out, n_in), []
    while True:
        groups = rng.choice([1, 1, 1, 2, 3])
        n_in, n_out = groups * rng.choice([1, 2, 5, 9, 17]), groups * rng.choice([1, 3, 8, 17])
        kernel = rng.choice([(1, 1), (3, 3), (2, 3), (4, 1)])
        stride, dilation = (rng.choice([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1)]) for _ in range(2))
        around = rng.choice([(0, 0), (1, 1), (2, 0), (5, 6), "same" if stride == (1, 1) else "valid"])
        size = rng.choice([1, 2, 3, 5, 8, 9]), rng.choice([1, 2, 4, 5, 8])
        shape = (rng.choice([0, 1, 2, 3]), n_in, *size)
        geometry = geometry_of("case", kernel, stride, around, dilation, groups)
        if min(out_size(torch.empty(shape), geometry)) >= 1:
            return shape, (n_out, n_in // groups, *kernel), geometry


def run(case, draw):
    """One case: the failures of its products."""
    dtype = DTYPES[case % 3]
    x_shape, w_shape, geometry = problem(draw)
    x, weight = draw.normal(*x_shape, dtype=dtype), draw.normal(*w_shape, dtype=dtype)
    size = out_size(x, geometry) if geometry else ()
    y = draw.laid(torch.full((x_shape[0], w_shape[0], *size), torch.nan, dtype=dtype))
    g = draw.normal(*y.shape, dtype=dtype)
    bias = draw.normal(w_shape[0], dtype=dtype) if case % 2 else None
    results = [draw.laid(torch.full(shape, torch.nan, dtype=dtype)) for shape in (x_shape, w_shape)]
    by_bits = bool(geometry) and case % 4 < 2
    absolute = False
    if by_bits:
        density = draw.rng.choice([0.0, 0.1, 0.5, 1.0])
        mask = torch.rand(w_shape, generator=draw.generator) < density
        bits = fenced(pack_bits(mask), draw.rng)
        weight.masked_fill_(~mask, torch.nan)  # absent, whatever it holds
        masked_conv2d.forward(x, weight, bits, bias, y, geometry)
        masked_conv2d.dx(g, weight, bits, results[0], geometry)
        masked_conv2d.dw(g, x, bits, results[1], geometry)
    else:
        scored = torch.float32 if case % 3 == 1 else dtype
        scores, chosen = draw.scores(w_shape, scored)
        absolute, mask = chosen.absolute, kept_mask(scores, chosen)
        plain = chosen.cut, absolute, seed_words(chosen.seed), chosen.offset
        ds = torch.full(w_shape, torch.nan, dtype=scored)
        threshold.forward(x, weight, scores, plain, bias, y, geometry)
        threshold.dx(g, weight, scores, plain, results[0], geometry)
        dw = results[1] = torch.full(w_shape, torch.nan, dtype=dtype)
        which = draw.rng.choice(["both", "dw", "ds"])
        outputs = dw if which != "ds" else None, ds if which != "dw" else None
        threshold.weight_and_score_gradients(g, x, weight, scores, plain, *outputs, geometry)
    kept = torch.where(mask, weight, 0.0).double()
    exact = list(products(x.double(), kept, g.double(), geometry))
    sizes = list(products(x.double().abs(), kept.abs(), g.double().abs(), geometry))
    ones = (torch.ones_like(x).double(), mask.double(), torch.ones_like(g).double())
    terms = list(products(*ones, geometry))
    if bias is not None:
        along = bias.double().view(-1, *[1] * len(size))
        exact[0], sizes[0], terms[0] = exact[0] + along, sizes[0] + along.abs(), terms[0] + 1
    found = {
        "y": excess(y, exact[0], sizes[0], terms[0]),
        "dx": excess(results[0], exact[1], sizes[1], terms[1]),
    }
    if by_bits or outputs[0] is not None:
        found["dw"] = excess(results[1], torch.where(mask, exact[2], 0.0), sizes[2], terms[2])
    if not by_bits and outputs[1] is not None:
        sign = scores.double().sign() if absolute else torch.ones_like(scores).double()
        slope = torch.where(scores.isnan(), 0.0, exact[2] * weight.double() * sign)
        got = ds.masked_fill(scores.isnan(), 0.0)
        found["ds"] = excess(got, slope, sizes[2] * weight.double().abs(), terms[2])
    where = f"case {case}: x {x_shape}, weight {w_shape}, {dtype}, {geometry}, bits {by_bits}"
    return [f"{name}: {what} ({where})" for name, what in found.items() if what]


def main():
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    draw = Draw(seed)
    failures = [failure for case in range(cases) for failure in run(case, draw)]
    print(json.dumps({"cases": cases, "failures": failures}))


if __name__ == "__main__":
    main()
