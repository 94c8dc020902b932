"""What a GPU can do at most, measured: copy bandwidth, matrix products, the cost of a launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from lotterykit.bench.timing import measure


def ceilings(*, gigabytes: float = 4.0, side: int = 8192, seconds: float = 1.0) -> dict[str, float]:
    """Measured peaks of the current CUDA device, on random data.

    `copy_tb_s`: device-to-device copy of `gigabytes`, bytes read plus written, in 10^12 B/s;
    `fp32_tflops`, `tf32_tflops`, `bf16_tflops`: square products of `side` through cuBLAS;
    `launch_us`: microseconds an elementwise kernel on one element takes back to back.
    """
    count = int(gigabytes * 1e9 / 4)
    source, target = torch.randn(count, device="cuda"), torch.empty(count, device="cuda")
    copy = measure(lambda: target.copy_(source), device="cuda", seconds=seconds)
    result = {"copy_tb_s": 8e-6 * count / copy.median}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
        with fp32_precision("tf32" if tf32 else "ieee"):
            timing = measure(torch.mm, [(a, b), (b, a)], device="cuda", seconds=seconds)
        result[f"{name}_tflops"] = 2e-6 * side**3 / timing.median
    one = torch.zeros(1, device="cuda")
    result["launch_us"] = (
        measure(lambda: [one.add_(1) for _ in range(100)], device="cuda", seconds=0.2).median / 100
    )
    return result


@contextlib.contextmanager
def fp32_precision(precision: str) -> Iterator[None]:
    """CUDA float32 matrix products in "tf32" or "ieee" while it is open."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
