"""Where `format="auto"` changes over: whole layers, sparse against masked and plain, forward + backward.

    python benchmarks/layers.py [--sizes 100,256,512,1024] [--densities .5,.3,.1,.01] [--batches 32,128,512]

Square linear layers with a bias, float32, one thread, the gradient of x included; the layers take turns, as
in benchmarks/linear.py. Results are checked before they are timed. Prints ratios of medians and writes
results/<machine>-layers.json, which `CROSSOVERS` of lotterykit/nn/crossover.py cites.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from linear import measure
from torch import Tensor, nn

from lotterykit.nn import convert_, revert_

RESULTS = Path(__file__).parent / "results"


def step(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a layer."""
    leaves = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), leaves, g)


def row_of(batch: int, size: int, density: float, repeats: int) -> dict:
    """Times one setting and prints its line."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, size, generator=generator).requires_grad_()
    g = torch.randn(batch, size, generator=generator)
    mask = torch.rand(size, size, generator=generator) < density
    masked = convert_(nn.Linear(size, size), masks={"weight": mask})
    sparse = convert_(copy.deepcopy(masked), format="sparse")
    plain = revert_(copy.deepcopy(masked))
    steps = {"sparse": step(sparse, x, g), "masked": step(masked, x, g), "plain": step(plain, x, g)}
    for name, run in steps.items():
        dx, dw, db = run()
        dx2, dw2, db2 = steps["plain"]()
        dw2 = dw2[mask] if name == "sparse" else torch.where(mask, dw2, 0.0) if name == "masked" else dw2
        for one, other in ((dx, dx2), (dw, dw2), (db, db2)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=f"{name} differs")
    seconds = measure(dict(steps), repeats)
    ours = seconds["sparse"]["median"]
    ratio = {name: taken["median"] / ours for name, taken in seconds.items() if name != "sparse"}
    shown = f"{ours * 1e6:>10.0f} {ratio['masked']:>8.2f} {ratio['plain']:>8.2f}"
    print(f"{batch:>6} {size:>6} {density:>8g} {shown}", flush=True)
    return {"batch": batch, "size": size, "density": density, "seconds": seconds, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,256,512,1024")
    parser.add_argument("--densities", default=".5,.3,.2,.1,.05,.01")
    parser.add_argument("--batches", default="32,128,512")
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    print(f"torch {torch.__version__}, {machine}, ratios are times over the sparse layer's")
    print(f"{'batch':>6} {'size':>6} {'density':>8} {'sparse us':>10} {'masked':>8} {'plain':>8}")
    rows = [
        row_of(int(batch), int(size), float(density), options.repeats)
        for batch in options.batches.split(",")
        for size in options.sizes.split(",")
        for density in options.densities.split(",")
    ]
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    head |= {"repeats": options.repeats, "statistic": "median", "dtype": "float32", "threads": 1}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine}-layers.json"
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
