"""A step of score training (selection, forward, backward) against the reference and the published way.

    python benchmarks/threshold.py [--repeats 10]

The published way (Ramanujan et al. 2020, `GetSubnet`) sorts |score|, writes a mask, and multiplies. Writes
results/<machine>-threshold.json, which ROUTES and the densities of ops/threshold_products.py cite; float32
and float64, one thread, gradients of x and of the scores. "native sparse" and "native dense" go by the kept
weights alone, or by the dense effective weight, at every density: they show where the crossover lies.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench import results
from lotterykit.bench.timing import alternate
from lotterykit.ops import score_thresholds, threshold_conv2d, threshold_linear, threshold_products
from lotterykit.ops.dispatch import use_backend

RESULTS = Path(__file__).parent / "results"
F32, F64 = torch.float32, torch.float64
# op, its shape (batch, in, out, or batch, in, height and width, out with a 3x3 kernel), dtypes
LAYERS = (
    ("threshold_linear", (128, 1024, 1024), (F32,)),
    ("threshold_linear", (64, 784, 300), (F32, F64)),
    ("threshold_conv2d", (16, 64, 8, 64), (F32, F64)),
)
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.01, 0.001)


class Subnet(torch.autograd.Function):
    """The published mask: 1 at the k highest scores, the gradient straight through."""

    @staticmethod
    def forward(ctx, scores: Tensor, density: float) -> Tensor:
        out = scores.clone()
        order = scores.flatten().sort().indices
        dropped = scores.numel() - round(density * scores.numel())
        flat = out.flatten()
        flat[order[:dropped]], flat[order[dropped:]] = 0, 1
        return flat.view(scores.shape)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g, None


@contextlib.contextmanager
def around(name: str) -> Iterator[None]:
    """Our backends and the two native ways, forced while their turn lasts."""
    limits = {"native sparse": (1.0, 1.0), "native dense": (-1.0, -1.0)}.get(name)
    kept = threshold_products.SPARSE_LINEAR, threshold_products.SPARSE_CONV2D
    with use_backend("reference" if name.endswith(":reference") else "auto"):
        if limits is not None:
            threshold_products.SPARSE_LINEAR, threshold_products.SPARSE_CONV2D = limits
        try:
            yield
        finally:
            threshold_products.SPARSE_LINEAR, threshold_products.SPARSE_CONV2D = kept


def steps(op: str, shape: tuple[int, ...], density: float, dtype: torch.dtype) -> dict[str, Callable]:
    """Every contender's step: it returns the gradients of x and of the scores."""
    batch, n_in, *side, n_out = shape
    generator = torch.Generator().manual_seed(0)
    kernel = [3, 3] if side else []
    x = torch.randn(batch, n_in, *side, *side, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(n_out, n_in, *kernel, generator=generator, dtype=dtype)
    scores = torch.randn(weight.shape, generator=generator, dtype=dtype, requires_grad=True)
    g = torch.randn(batch, n_out, *side, *side, generator=generator, dtype=dtype)

    def ours() -> tuple[Tensor, ...]:
        (threshold,) = score_thresholds([scores], density=density)
        if side:
            y = threshold_conv2d(x, weight, scores, threshold, padding=1)
        else:
            y = threshold_linear(x, weight, scores, threshold)
        return torch.autograd.grad(y, (x, scores), g)

    def published() -> tuple[Tensor, ...]:
        effective = weight * Subnet.apply(scores.abs(), density)
        y = F.conv2d(x, effective, padding=1) if side else F.linear(x, effective)
        return torch.autograd.grad(y, (x, scores), g)

    names = (f"{op}:cpu", f"{op}:reference", "native sparse", "native dense")
    return {**dict.fromkeys(names, ours), "published": published}


def row_of(op: str, shape: tuple[int, ...], density: float, dtype: torch.dtype, repeats: int) -> dict:
    """Times one setting, all contenders checked against the published way, and prints its line."""
    torch.set_num_threads(1)
    contenders = steps(op, shape, density, dtype)
    expected = contenders["published"]()
    for name, step in contenders.items():
        with around(name):
            torch.testing.assert_close(step(), expected, rtol=1e-3, atol=1e-3)
    timed = alternate(contenders, repeats=repeats, around=around)
    us = {name: timing.as_dict() for name, timing in timed.items()}
    mine = us[f"{op}:cpu"]["median"]
    ratios = {name: round(taken["median"] / mine, 2) for name, taken in us.items() if name != f"{op}:cpu"}
    print(f"{op} {'x'.join(map(str, shape))} {dtype} {density:g} {mine:.0f} us {ratios}", flush=True)
    setting = {"op": op, "shape": list(shape), "density": density, "work": "step", "threads": 1}
    return {**setting, "dtype": str(dtype).removeprefix("torch."), "device": "cpu", "us": us}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    rows = [
        row_of(op, shape, density, dtype, repeats)
        for op, shape, dtypes in LAYERS
        for dtype in dtypes
        for density in DENSITIES
    ]
    path = RESULTS / f"{results.machine()}-threshold.json"
    results.write(path, results.document(rows, repeats=repeats))
    print(path)


if __name__ == "__main__":
    main()
