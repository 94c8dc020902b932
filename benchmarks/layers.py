"""Where `format="auto"` changes over: whole layers, sparse against masked and plain, forward + backward.

    python benchmarks/layers.py [--sizes 100,256,512,1024] [--convs 64x32,64x8] [--densities .5,.3,.1,.01]

Square linear layers, and 3x3 convolutions of as many channels out as in ("channels x height and width",
padding 1), with a bias, float32, one thread, the gradient of x included; the layers take turns, as in
`lotterykit bench`. Results are checked before they are timed. Prints ratios of medians and writes
results/<machine>-layers.json, which `CROSSOVERS` of lotterykit/ops/crossovers.py cites.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lotterykit.bench import results
from lotterykit.bench.setting import Setting
from lotterykit.bench.timing import CLOCKS, alternate
from lotterykit.nn import convert_, revert_

RESULTS = Path(__file__).parent / "results"


def step(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a layer."""
    leaves = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), leaves, g)


def layer_of(size: str) -> tuple[nn.Module, list[int]]:
    """A layer and the shape of an input, "512" for a linear one, "64x32" for a convolution."""
    if "x" not in size:
        return nn.Linear(int(size), int(size)), [int(size)]
    channels, height = (int(part) for part in size.split("x"))
    return nn.Conv2d(channels, channels, 3, padding=1), [channels, height, height]


def row_of(batch: int, size: str, density: float, repeats: int, clock: str) -> dict:
    """Times one setting and prints its line."""
    generator = torch.Generator().manual_seed(0)
    layer, image = layer_of(size)
    x = torch.randn(batch, *image, generator=generator).requires_grad_()
    g = torch.randn(batch, *image, generator=generator)
    mask = torch.rand(layer.weight.shape, generator=generator) < density
    masked = convert_(layer, masks={"weight": mask})
    sparse = convert_(copy.deepcopy(masked), format="sparse")
    plain = revert_(copy.deepcopy(masked))
    steps = {"sparse": step(sparse, x, g), "masked": step(masked, x, g), "plain": step(plain, x, g)}
    for name, run in steps.items():
        dx, dw, db = run()
        dx2, dw2, db2 = steps["plain"]()
        dw2 = dw2[mask] if name == "sparse" else torch.where(mask, dw2, 0.0) if name == "masked" else dw2
        for one, other in ((dx, dx2), (dw, dw2), (db, db2)):
            # sums of up to 130,000 products, added in other orders
            scale = float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale, msg=f"{name} differs")
    timings = alternate(dict(steps), repeats=repeats, clock=clock)
    ours = timings["sparse"].median
    ratio = {name: taken.median / ours for name, taken in timings.items() if name != "sparse"}
    shown = f"{ours:>10.0f} {ratio['masked']:>8.2f} {ratio['plain']:>8.2f}"
    print(f"{batch:>6} {size:>6} {density:>8g} {shown}", flush=True)
    kind = "linear-layer" if len(image) == 1 else "conv2d-layer"
    setting = Setting(kind, (batch, *image, image[0]), density, "forward+backward").as_dict()
    setting["weights"] = mask.numel()
    us = {name: taken.as_dict() for name, taken in timings.items()}
    return setting | {"clock": clock, "us": us, "ours": "sparse", "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,256,512,1024")
    parser.add_argument("--convs", default="16x32,64x8,64x32,128x16,256x4")
    parser.add_argument("--densities", default=".5,.3,.2,.1,.05,.01")
    parser.add_argument("--batches", default="32,128,512")
    parser.add_argument("--conv-batches", default="8,32,128")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: where the machine is shared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = results.machine()
    print(f"torch {torch.__version__}, {machine}, ratios are times over the sparse layer's")
    print(f"{'batch':>6} {'size':>6} {'density':>8} {'sparse us':>10} {'masked':>8} {'plain':>8}")
    settings = [
        (int(batch), size, float(density))
        for sizes, batches in ((options.sizes, options.batches), (options.convs, options.conv_batches))
        for batch in batches.split(",")
        for size in sizes.split(",")
        for density in options.densities.split(",")
    ]
    path, rows = RESULTS / f"{machine}-layers.json", []
    for setting in settings:  # written each time: what is cut off keeps what it has measured
        rows.append(row_of(*setting, options.repeats, options.clock))
        results.write(path, results.document(rows, repeats=options.repeats))
    print(path)


if __name__ == "__main__":
    main()
