"""C4: a 3x3 convolution of kept weights, forward and forward + backward, against every peer installed.

    python benchmarks/conv.py [--shapes 32x64x32x64] [--densities .4,.1,.05,.01] [--threads 1]

Shapes are batch x in x height and width x out, padding 1, float32, through autograd, the gradient of x
included; ours and torch's in NCHW and in channels-last, ours also batch-last, the order that
`lotterykit.ops.batch_last` gives and sparse convolutions keep. Every peer gets x and the gradient of y in its
own order and leaves y and the gradient of x in it: what brings images into an order is not timed. This is
`lotterykit bench conv` with the goals' grid; it writes results/<machine>-conv.json.
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
    parser.add_argument("--shapes", default="32x64x32x64,32x128x16x128,32x512x4x512")
    parser.add_argument("--densities", default=".4,.2,.1,.05,.01")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--repeats", default="15")
    parser.add_argument("--clock", default="wall", help="cpu: CPU time, where the machine is shared")
    parser.add_argument("--peers", default="", help="all that serve conv by default")
    options = parser.parse_args()
    flags = ["--shape", options.shapes, "--density", options.densities, "--threads", options.threads]
    flags += ["--repeats", options.repeats, "--clock", options.clock]
    flags += ["--peers", options.peers] if options.peers else []
    return invoke(["bench", "conv", *flags, "--json", str(RESULTS / f"{machine()}-conv.json")])


if __name__ == "__main__":
    sys.exit(main())
