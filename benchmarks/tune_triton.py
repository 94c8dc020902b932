"""Measures tile configurations of the Triton kernels on a GPU, and writes the fastest to kernels/configs.py.

    python benchmarks/tune_triton.py [part of a kernel's name]

Each row is tuned by the forward and backward pass of a layer that uses it, everything else as it stands. One
is kept for the GPU's capability only where it is at least 2 % faster than the present one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).parents[1] / "kernels" / "configs.py"
GAIN = 1.02
Key = tuple[str, str, str]  # kernel, how operands are multiplied, bucket of shapes
Timer = Callable[[Key], float | None]  # microseconds with the table as it stands; None where it cannot run


def candidates(bucket: str) -> Iterable[tuple[int, int, int, int, int]]:
    """Tiles i, j, r, warps and stages worth a try."""
    widths = (16, 32) if bucket == "narrow" else (64, 128, 256)
    for i in (64, 128):
        for j in widths:
            for r in (32, 64):
                for stages in (2, 3, 4):
                    yield i, j, r, 8 if i * j >= 8192 else 4, stages


def tune(
    configs: dict[Any, Any], make: Callable[..., Any], keys: Iterable[Key], capability: int, timer: Timer
) -> None:
    """Give `configs` the fastest candidate of each key for `capability`, where it beats what stood there."""
    for key in keys:
        place = (*key, capability)
        before = configs.get(place)
        present = timer(key)
        best, fastest = before, None if present is None else present / GAIN
        for tried in candidates(key[2]):
            configs[place] = make(*tried)
            us = timer(key)
            if us is not None and (fastest is None or us < fastest):
                best, fastest = configs[place], us
        if best is None:
            del configs[place]
        else:
            configs[place] = best
        print(f"{key}: {best or 'as it was'}, {fastest} us; before {present} us", flush=True)


def written(text: str, configs: dict[Any, Any]) -> str:
    """The module's text with its table replaced, rows of one kernel together."""
    head, _, _ = text.partition("= {\n")
    kernels = list(dict.fromkeys(key[0] for key in configs))
    rows = sorted(configs, key=lambda key: (kernels.index(key[0]), key[3]))
    lines = []
    for kernel, how, bucket, capability in rows:
        config = configs[kernel, how, bucket, capability]
        lines.append(f'    ("{kernel}", "{how}", "{bucket}", {capability}): Config{tuple(config)},\n')
    return f"{head}= {{\n{''.join(lines)}}}\n"


HOW = {"half": (torch.bfloat16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
LINEAR = {"wide": (512, 4096, 4096), "narrow": (16, 4096, 4096), "ragged": (509, 2047, 2045)}
CONV = {"wide": (32, 128, 16, 256), "narrow": (1, 128, 4, 256), "ragged": (32, 128, 16, 256)}
CONV_GRADIENT = CONV | {"narrow": (32, 32, 16, 32)}


def layer_of(key: Key) -> tuple[Callable[..., Any], tuple[Any, ...], list[torch.Tensor]]:
    """A function, its arguments and the tensors to differentiate: what uses the row."""
    from lotterykit.ops import masked_conv2d, masked_linear, score_thresholds, threshold_linear

    kernel, how, bucket = key
    dtype, _ = HOW[how]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda").to(dtype).requires_grad_()

    if kernel in ("kept_product", "weight_gradient"):
        n, n_in, side, n_out = (CONV if kernel == "kept_product" else CONV_GRADIENT)[bucket]
        x, weight = draw(n, n_in, side, side), draw(n_out, n_in, 3, 3)
        if bucket != "ragged":
            x, weight = (
                t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)
            )
        mask = torch.rand(weight.shape, device="cuda") < 0.1
        return lambda *a: masked_conv2d(*a, padding=1), (x, weight, mask), [x, weight]
    batch, n_in, n_out = LINEAR[bucket]
    x, weight = draw(batch, n_in), draw(n_out, n_in)
    if kernel == "masked_linear":
        mask = torch.rand(weight.shape, device="cuda") < 0.1
        return masked_linear, (x, weight, mask), [x, weight]
    scores = draw(n_out, n_in)
    (threshold,) = score_thresholds([scores], density=0.1)
    return threshold_linear, (x, weight.detach(), scores, threshold), [x, scores]


def timed(key: Key) -> float | None:
    """Median microseconds of forward plus backward; None where the GPU lacks what the tiles need."""
    from triton.runtime.errors import OutOfResources

    from lotterykit.bench.ceilings import fp32_precision
    from lotterykit.bench.timing import measure
    from lotterykit.ops.dispatch import use_backend

    function, arguments, inputs = layer_of(key)
    ops = ["masked_linear", "masked_conv2d", "threshold_linear"]

    def step() -> Any:
        y = function(*arguments)
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    with fp32_precision(HOW[key[1]][1]), use_backend("triton", ops=ops):
        try:
            return measure(step, device="cuda", seconds=0.2, queued=True).median
        except OutOfResources:
            return None


def main() -> int:
    if not torch.cuda.is_available():
        print("tune_triton: torch sees no CUDA device, so there is nothing to tune for", file=sys.stderr)
        return 2
    from lotterykit.kernels import configs

    major, minor = torch.cuda.get_device_capability()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    keys = [key[:3] for key in configs.CONFIGS if key[3] == 0 and wanted in key[0]]
    tune(configs.CONFIGS, configs.Config, keys, 10 * major + minor, timed)
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(written(TABLE.read_text(), configs.CONFIGS))
    temporary.replace(TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
