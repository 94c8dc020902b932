"""What a machine can do at most, measured: bandwidths, matrix products, the cost of a launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

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


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL = {"L2": 2**20, "L3": 2**25}  # bytes, where the system does not tell


def cpu_ceilings(dtype: torch.dtype = torch.float32, *, seconds: float = 0.3) -> dict[str, float]:
    """Measured peaks of the CPU on `torch.get_num_threads()` threads: "gflops" of a square matrix product,
    and the GB/s at which a dot product reads what lies in "L2", in "L3" and in "memory".

    A call on one element costs what is not reading: it is subtracted. The first cache is left out: what it
    holds is read faster than a call begins.
    """
    side = 1024
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    found = {"gflops": 2e-3 * side**3 / measure(torch.mm, [(a, b)], seconds=seconds).p20}
    one = torch.ones(1, dtype=dtype)
    call = measure(torch.dot, [(one, one)], seconds=seconds / 3, most=5000).p20
    caches = cache_bytes()
    for name, size in (("L2", caches["L2"] // 2), ("L3", caches["L3"] // 2), ("memory", 6 * caches["L3"])):
        x, y = (torch.ones(max(1, size // 2 // dtype.itemsize), dtype=dtype) for _ in range(2))
        taken = measure(torch.dot, [(x, y)], seconds=seconds, most=2000).p20
        found[name] = 1e-3 * 2 * x.numel() * dtype.itemsize / max(taken - call, 1e-2 * taken)
    return found


def cache_bytes() -> dict[str, int]:
    """Bytes of the second and third cache, as Linux tells them."""
    sizes = dict(USUAL)
    for folder in sorted(CACHES.glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            level, text = (folder / "level").read_text().strip(), (folder / "size").read_text().strip()
            if f"L{level}" in sizes and text.endswith("K"):
                sizes[f"L{level}"] = int(text[:-1]) * 1024
    return sizes


@contextlib.contextmanager
def fp32_precision(precision: str) -> Iterator[None]:
    """CUDA float32 matrix products in "tf32" or "ieee" while it is open."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
