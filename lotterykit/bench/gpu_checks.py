"""Correctness on a real GPU, fresh random inputs every time: each function returns the failures it found."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lotterykit.bench.ceilings import fp32_precision
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.topk_mask import topk_mask

PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
}
SHAPES = (
    (1, 1, 1),
    (37, 101, 53),
    (64, 512, 512),
    (128, 784, 300),
    (512, 1024, 1024),
    (8, 4096, 256),
    (0, 5, 3),
)


def check_masked_linear(cases: int = 40, *, device: str = "cuda") -> list[str]:
    """y, dx, dw and db of the Triton kernels against float64, within goals.md R1's bound per precision."""
    failures = []
    for name, (dtype, precision) in PRECISIONS.items():
        with fp32_precision(precision), use_backend("triton"):
            for case in range(cases):
                batch, n_in, n_out = (
                    SHAPES[case]
                    if case < len(SHAPES)
                    else (int(torch.randint(1, top, ())) for top in (300, 600, 600))
                )
                density = float(torch.rand(()))
                found = _masked_linear_case((batch, n_in, n_out), density, dtype, name, device)
                where = f"{name} ({batch}, {n_in}, {n_out}) density {density:.2f}"
                failures += [f"masked_linear {where}: {what}" for what in found]
    return failures


def _masked_linear_case(
    shape: tuple[int, int, int], density: float, dtype: torch.dtype, name: str, device: str
) -> list[str]:
    batch, n_in, n_out = shape
    x = torch.randn(batch, n_in, device=device).to(dtype)
    weight = torch.randn(n_out, n_in, device=device).to(dtype)
    mask = torch.rand(n_out, n_in, device=device) < density
    weight.masked_fill_(~mask, float("nan"))
    bias, g = (torch.randn(size, device=device).to(dtype) for size in ((n_out,), (batch, n_out)))
    inputs = [t.requires_grad_(True) for t in (x, weight, bias)]
    y = masked_linear(x, weight, mask, bias)
    dx, dw, _ = torch.autograd.grad(y, inputs, g)
    again = torch.autograd.grad(masked_linear(x, weight, mask, bias), inputs, g)
    kept = torch.where(mask, weight, 0.0).detach().double()
    x, g, bias = x.detach().double(), g.double(), bias.detach().double()
    found = [
        _excess("forward", y.detach(), x, kept.T, mask.sum(1), name, bias),
        _excess("dx", dx, g, kept, mask.sum(0), name),
        _excess("dw", dw, g.T, x, torch.tensor(batch), name, mask=mask),
    ]
    if not (torch.equal(dx, again[0]) and torch.equal(dw, again[1])):
        found.append("two runs differ")
    return [what for what in found if what]


def _excess(
    what: str,
    got: Tensor,
    a: Tensor,
    b: Tensor,
    terms: Tensor,
    name: str,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> str | None:
    """How far `got` lies over (terms + 1) * eps * sum |products| + rounding of inputs (TF32) and output."""
    expected, magnitude = a @ b, a.abs() @ b.abs()
    if bias is not None:
        expected, magnitude, terms = expected + bias, magnitude + bias.abs(), terms + 1
    if mask is not None:
        expected = torch.where(mask, expected, 0.0)
    per_product = (terms.to(a.device) + 1) * torch.finfo(torch.float32).eps
    if name == "tf32":
        per_product = per_product + 2.0**-9  # each factor is cut to 10 bits: 2^-10 twice
    bound = per_product * magnitude
    if got.dtype != torch.float32:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (expected.abs() + bound) + finfo.tiny
    over = (got.double() - expected).abs() - bound
    if not got.isfinite().all():
        return f"{what} is not finite"
    return f"{what} is {float(over.max()):g} over the bound" if over.numel() and over.max() > 0 else None


def check_masked_linear_large() -> list[str]:
    """Offsets beyond 2^31: the last rows of a bf16 product with 2^31 + 6144 input values."""
    rows, n_in, n_out = 2**20 + 3, 2048, 64
    x = torch.randn(rows, n_in, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n_out, n_in, device="cuda", dtype=torch.bfloat16)
    mask = torch.rand(n_out, n_in, device="cuda") < 0.1
    with use_backend("triton"):
        y = masked_linear(x, weight, mask)
    kept = torch.where(mask, weight, 0.0).double()
    found = [
        _excess(
            f"rows from {start}",
            y[start : start + 64],
            x[start : start + 64].double(),
            kept.T,
            mask.sum(1),
            "bf16",
        )
        for start in (0, rows // 2, rows - 64)
    ]
    return [f"masked_linear large: {what}" for what in found if what]


def check_topk_mask(cases: int = 40, *, device: str = "cuda", backend: str = "cuda") -> list[str]:
    """The CUDA kernel against the reference on the CPU: equal masks, exact counts, NaN refused."""
    failures = []
    for case, (kind, scores) in enumerate(_score_sets(cases, device)):
        total = sum(s.numel() for s in scores)
        within = [torch.rand_like(s.float()) < 0.7 for s in scores] if case % 3 == 0 else None
        most = total if within is None else int(sum(w.sum() for w in within))
        k = int(torch.randint(0, most + 1, ()))
        with use_backend(backend):
            got = topk_mask(scores, k=k, seed=case, within=within)
        with use_backend("reference"):
            cpu = None if within is None else [w.cpu() for w in within]
            want = topk_mask([s.cpu() for s in scores], k=k, seed=case, within=cpu)
        if sum(int(m.sum()) for m in got) != k:
            failures.append(f"topk_mask {kind} k={k} of {total}: kept {sum(int(m.sum()) for m in got)}")
        elif not all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True)):
            failures.append(f"topk_mask {kind} k={k} of {total}: differs from the reference")
    poisoned = torch.randn(1000, device=device)
    poisoned[577] = float("nan")
    try:
        with use_backend(backend):
            topk_mask([poisoned], k=10)
    except ValueError:
        return failures
    return [*failures, "topk_mask accepted a NaN"]


def _score_sets(cases: int, device: str) -> Iterator[tuple[str, list[Tensor]]]:
    for case in range(cases):
        sizes = [int(torch.randint(0, 60_000, ())) for _ in range(int(torch.randint(1, 12, ())))]
        dtype = torch.float64 if case % 4 == 3 else torch.float32
        scores = [torch.randn(size, device=device, dtype=dtype) for size in sizes]
        kind = ("normal", "mostly zero", "signed constant", "few values", "special values")[case % 5]
        for s in scores:
            if kind == "mostly zero":
                s.mul_(torch.rand_like(s) < 0.3)
            elif kind == "signed constant":
                s.sign_()
            elif kind == "few values":
                s.round_()
            elif kind == "special values" and s.numel() > 4:
                s[:4] = torch.tensor([float("inf"), -float("inf"), -0.0, 0.0], dtype=dtype)
        yield kind, scores


def check_topk_mask_large() -> list[str]:
    """Selection among 2^31 + 100 scores in two tensors: exact count, no dropped score above a kept one."""
    scores = [torch.randn(2**31, device="cuda"), torch.randn(100, device="cuda")]
    k = 2**30 + 7
    with use_backend("cuda"):
        masks = topk_mask(scores, k=k)
    kept = sum(int(m.sum()) for m in masks)
    failures = [] if kept == k else [f"topk_mask large: kept {kept}, wanted {k}"]
    low, high = float("inf"), -float("inf")
    for s, m in zip(scores, masks, strict=True):
        for part, keep in zip(s.split(2**28), m.split(2**28), strict=True):
            low = min(low, float(torch.where(keep, part, float("inf")).min()))
            high = max(high, float(torch.where(keep, -float("inf"), part).max()))
    return failures if low >= high else [*failures, f"topk_mask large: kept {low}, dropped {high}"]
