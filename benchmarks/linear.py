"""C1 to C3: a linear layer of kept weights, forward and forward + backward, against every peer installed.

    python benchmarks/linear.py [--shapes 128x1024x1024] [--densities .1,.05,.01,.001] [--threads 1]

Shapes are batch x in x out, float32, through autograd, the gradient of x included. This is `lotterykit bench
linear` with the goals' grid; it writes results/<machine>-linear.json, from which `lotterykit bench --from`
draws the charts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lotterykit.bench.results import machine
from lotterykit.cli import invoke

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="128x1024x1024,128x784x300,64x512x512,256x4096x4096")
    parser.add_argument("--densities", default="1,.5,.2,.1,.05,.01,.001")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--repeats", default="41")
    options = parser.parse_args()
    flags = ["--shape", options.shapes, "--density", options.densities, "--threads", options.threads]
    flags += ["--repeats", options.repeats, "--json", str(RESULTS / f"{machine()}-linear.json")]
    return invoke(["bench", "linear", *flags])


if __name__ == "__main__":
    sys.exit(main())
