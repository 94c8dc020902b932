"""Planting at sweep speed: `match_neurons` natively and in plain torch, and all of `plant`.

    python benchmarks/planting.py [--widths 100,1000,10000] [--repeats 9]

Circle and Helix at depth 5, best matching, one thread. The matches of both backends are checked to be equal.
Prints medians and writes results/<machine>-planting.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.ops.match_neurons import match_neurons
from lotterykit.planting.match import match
from lotterykit.planting.plant import plant
from lotterykit.planting.targets import TARGETS

RESULTS = Path(__file__).parent / "results"


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds; at most about 5 s."""
    times: list[float] = []
    work()
    while len(times) < repeats and (len(times) < 3 or sum(times) < 5.0):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def by_backend(name: str, theta: torch.Tensor, candidates: torch.Tensor) -> Callable[[], object]:
    def work() -> object:
        with dispatch.use_backend(name, ops=["match_neurons"]):
            return match_neurons(theta, candidates)

    return work


def row_of(name: str, width: int, repeats: int) -> dict:
    target = TARGETS[name](5)
    mother = mlp([target.widths[0], width, width, width, target.widths[-1]])
    theta = torch.cat([target.biases[1][:, None], target.weights[1]], 1).double()
    candidates = torch.randn(width, theta.shape[1], dtype=torch.float64)
    layer = {peer: by_backend(peer, theta, candidates) for peer in ("reference", "cpu")}
    if not torch.equal(*(work().chosen for work in layer.values())):
        raise SystemExit("the backends match other neurons")
    seconds = {f"match_neurons {peer}": timed(work, repeats) for peer, work in layer.items()}
    seconds["match"] = timed(lambda: match(target, mother), repeats)
    seconds["plant"] = timed(lambda: plant(target, mother), repeats)
    ratio = seconds["match_neurons reference"] / seconds["match_neurons cpu"]
    shown = "  ".join(f"{key} {1e3 * value:.2f} ms" for key, value in seconds.items())
    print(f"{name:>6} {width:>6}  {shown}  ratio {ratio:.1f}", flush=True)
    return {"task": name, "width": width, "seconds": seconds, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="100,1000,10000")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    print(f"torch {torch.__version__}, {machine}, 1 thread")
    widths = [int(width) for width in options.widths.split(",")]
    rows = [row_of(name, width, options.repeats) for name in ("circle", "helix") for width in widths]
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    path = RESULTS / f"{machine}-planting.json"
    path.write_text(json.dumps(head | {"threads": 1, "statistic": "median", "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
