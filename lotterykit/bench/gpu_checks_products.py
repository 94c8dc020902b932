"""Correctness on a real GPU of convolutions, threshold layers and the kernels over many tensors.

Fresh random inputs every time; each function returns the failures it found.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.bench.gpu_checks import PRECISIONS
from lotterykit.ops.conv_geometry import geometry_of, of_torch, out_size
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.gem_miner_step import gem_miner_step_
from lotterykit.ops.masked_conv2d import masked_conv2d
from lotterykit.ops.masked_copies import masked_copies
from lotterykit.ops.threshold import fixed_threshold, kept_mask, score_thresholds
from lotterykit.ops.threshold_conv2d import threshold_conv2d
from lotterykit.ops.threshold_linear import threshold_linear

# n, in, out, height, width, kernel, stride, padding, dilation, groups
Shape = tuple[int, int, int, int, int, int, int, int, int, int]
CONVOLUTIONS: tuple[Shape, ...] = (
    (32, 64, 64, 32, 32, 3, 1, 1, 1, 1),
    (32, 128, 256, 16, 16, 3, 2, 1, 1, 1),
    (7, 21, 35, 9, 11, 3, 2, 1, 1, 1),
    (2, 48, 32, 8, 5, 2, 3, 2, 2, 2),
    (8, 3, 16, 33, 33, 5, 1, 2, 1, 1),
    (64, 256, 512, 1, 1, 1, 1, 0, 1, 1),
    (0, 4, 4, 5, 5, 3, 1, 1, 1, 1),
)
LINEARS = ((37, 101, 53), (512, 1024, 1024), (8, 4096, 256), (129, 784, 300), (0, 5, 3))


def check_masked_conv2d(cases: int = 21, *, device: str = "cuda") -> list[str]:
    """y, dx and dw of the implicit GEMM against float64, in both memory formats, within R1's bound."""
    return _check(CONVOLUTIONS, cases, device, scored=False)


def check_threshold(cases: int = 20, *, device: str = "cuda") -> list[str]:
    """y, dx and dS of threshold layers against float64: ties, and both kinds of threshold."""
    linear = _check(LINEARS, cases, device, scored=True)
    return linear + _check(CONVOLUTIONS, cases, device, scored=True)


def _check(shapes: Any, cases: int, device: str, *, scored: bool) -> list[str]:
    failures = []
    for name, (dtype, precision) in PRECISIONS.items():
        with fp32_precision(precision):
            for case in range(cases):
                shape = shapes[case % len(shapes)]
                found = _case(shape, dtype, name, device, scored, last=case >= len(shapes))
                what = "threshold" if scored else "masked_conv2d"
                failures += [f"{what} {name} {shape}: {failure}" for failure in found]
    return failures


def _case(
    shape: tuple[int, ...], dtype: torch.dtype, name: str, device: str, scored: bool, *, last: bool
) -> list[str]:
    options, geometry, sizes = _sizes(shape)
    x, weight, g = (_draw(size, dtype, device, last) for size in sizes)
    scores, chosen = _scores(sizes[1], device)
    mask = kept_mask(scores, chosen)
    inputs = [t.requires_grad_(True) for t in ((x, scores.to(dtype)) if scored else (x, weight))]

    def run() -> tuple[Tensor, ...]:
        if not scored:
            with use_backend("triton", ops=["masked_conv2d"]):
                y = masked_conv2d(x, weight, mask, **options)
                return y, *torch.autograd.grad(y, inputs, g)
        with use_backend("triton", ops=["threshold_linear", "threshold_conv2d"]):
            layer = threshold_conv2d if geometry else threshold_linear
            y = layer(x, weight, inputs[1], chosen, **options)
            return y, *torch.autograd.grad(y, inputs, g)

    if scored:
        mask = kept_mask(inputs[1], chosen)
    else:
        weight.data.masked_fill_(~mask, float("nan"))
    first, second = run(), run()
    kept = torch.where(mask, weight, 0.0).detach()
    plain = [t.detach().double() for t in (x, kept, g)]
    exact = _products(plain, geometry)
    size = _products([t.abs() for t in plain], geometry)
    terms = _products([torch.ones_like(plain[0]), mask.double(), torch.ones_like(plain[2])], geometry)
    if scored:
        factor = weight.detach().double() * (inputs[1].detach().double().sign() if chosen.absolute else 1.0)
        exact[2], size[2] = exact[2] * factor, size[2] * factor.abs()
    else:
        exact[2] = torch.where(mask, exact[2], 0.0)
    found = [
        _excess(what, got, exact[i], size[i], terms[i], name)
        for i, (what, got) in enumerate(zip(("y", "dx", "ds" if scored else "dw"), first, strict=True))
    ]
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        found.append("two runs differ")
    return [what for what in found if what]


def _sizes(shape: tuple[int, ...]) -> tuple[dict[str, Any], list[int], list[tuple[int, ...]]]:
    """Options of the layer, its geometry ([]: linear), and the shapes of x, weight and y."""
    if len(shape) == 3:
        batch, n_in, n_out = shape
        return {}, [], [(batch, n_in), (n_out, n_in), (batch, n_out)]
    n, n_in, n_out, height, width, k, stride, padding, dilation, groups = shape
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    geometry = geometry_of("check", (k, k), stride, padding, dilation, groups)
    x = torch.empty(n, n_in, height, width, device="meta")
    y = (n, n_out, *out_size(x, geometry))
    return options, geometry, [tuple(x.shape), (n_out, n_in // groups, k, k), y]


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, last: bool) -> Tensor:
    drawn = torch.randn(shape, device=device).to(dtype)
    return drawn.to(memory_format=torch.channels_last) if last and len(shape) == 4 else drawn


def _scores(shape: tuple[int, ...], device: str) -> tuple[Tensor, Any]:
    """Scores of few values that half precision holds, so that many tie, or normal ones; their threshold."""
    scores = torch.randn(shape, device=device)
    scores = (scores * 4).round() / 4 if random.random() < 0.5 else scores.bfloat16().half().float()
    if random.random() < 0.3:
        return scores, fixed_threshold(0.5, device=device)
    density = random.choice([0.01, 0.1, 0.5, 1.0])
    return scores, score_thresholds([scores], density=density, seed=random.randrange(2**63))[0]


def _products(operands: list[Tensor], geometry: list[int]) -> list[Tensor]:
    """y, dx, dw of x, weight and g by torch."""
    x, weight, g = operands
    x, weight = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    if geometry:
        images, (stride, padding, dilation, groups) = of_torch(x, geometry)
        y = torch.nn.functional.conv2d(images, weight, None, stride, padding, dilation, groups)
    else:
        y = x @ weight.T
    return [y.detach(), *torch.autograd.grad(y, (x, weight), g)]


def _excess(what: str, got: Tensor, exact: Tensor, size: Tensor, terms: Tensor, name: str) -> str | None:
    per_product = (terms + 1) * torch.finfo(torch.float32).eps
    if name == "tf32":
        per_product = per_product + 2.0**-9  # each factor is cut to 10 bits: 2^-10 twice
    bound = per_product * size
    if got.dtype != torch.float32:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (exact.abs() + bound) + finfo.tiny
    over = (got.detach().double() - exact).abs() - bound
    if not got.isfinite().all():
        return f"{what} is not finite"
    return f"{what} is {float(over.max()):g} over the bound" if over.numel() and over.max() > 0 else None


def check_multi_tensor(cases: int = 20, *, device: str = "cuda") -> list[str]:
    """Masked copies bit for bit, and Gem-Miner's step within float32 rounding of float64."""
    failures = []
    for _ in range(cases):
        shapes = [(random.randrange(200_000),) for _ in range(random.randint(1, 30))] + [(3, 5, 7, 9)]
        weights = [torch.randn(s, device=device) for s in shapes]
        masks = [torch.rand(s, device=device) < random.choice([0.01, 0.5]) for s in shapes]
        wanted = random.choice([torch.float32, torch.bfloat16, torch.float16])
        with use_backend("triton", ops=["masked_copies"]):
            got = masked_copies(weights, masks, dtype=wanted)
        rows = zip(got, weights, masks, strict=True)
        # the interpreter cuts what a GPU rounds
        near = 0.0 if device == "cuda" else torch.finfo(wanted).eps
        if not all(torch.allclose(a, torch.where(m, w, 0.0).to(wanted), near, 0.0) for a, w, m in rows):
            failures.append(f"masked_copies to {wanted} of {len(shapes)} tensors differs")
        failures += _step_case(weights, masks)
    return failures


def _step_case(gradients: list[Tensor], active: list[Tensor]) -> list[str]:
    scores = [torch.rand_like(g) * on for g, on in zip(gradients, active, strict=True)]
    momenta = [torch.randn_like(g) * on for g, on in zip(gradients, active, strict=True)]
    wide = [[t.double() for t in tensors] for tensors in (scores, gradients, momenta)]
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "penalty": 1e-3, "active": active}
    with use_backend("triton", ops=["gem_miner_step"]):
        gem_miner_step_(scores, gradients, momenta, **options)
    with use_backend("reference", ops=["gem_miner_step"]):
        gem_miner_step_(*wide, **options)
    pairs = zip((*scores, *momenta), (*wide[0], *wide[2]), strict=True)
    near = all(torch.allclose(a.double(), b, rtol=1e-6, atol=1e-6) for a, b in pairs)
    return [] if near else [f"gem_miner_step_ of {len(scores)} tensors differs"]


def check_masked_conv2d_large() -> list[str]:
    """Offsets beyond 2^31: the last images of a bf16 convolution of 2^31 + 2^24 input values."""
    x = torch.randn(129, 64, 512, 512, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(8, 64, 3, 3, device="cuda", dtype=torch.bfloat16)
    mask = torch.rand(weight.shape, device="cuda") < 0.1
    with use_backend("triton", ops=["masked_conv2d"]):
        y = masked_conv2d(x, weight, mask, padding=1)
    kept = torch.where(mask, weight, 0.0).double()
    failures = []
    for image in (0, 64, 128):
        one = x[image : image + 1].double()
        exact, size, terms = (
            torch.nn.functional.conv2d(a, b, padding=1)
            for a, b in ((one, kept), (one.abs(), kept.abs()), (torch.ones_like(one), mask.double()))
        )
        found = _excess(f"image {image}", y[image : image + 1], exact, size, terms, "bf16")
        failures += [f"masked_conv2d large: {found}"] if found else []
    return failures
