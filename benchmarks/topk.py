"""C5: exact global top-k over many tensors, against what a user would write in torch.

    python benchmarks/topk.py [--sizes 270000,2300000] [--densities .1,.5] [--threads 1,2] [--repeats 15]

Scores are normal magnitudes ("normal") or SynFlow-like ("zeros", 70 % zeros), over 20 tensors. This is
`lotterykit bench topk` with the goals' grid; it writes results/<machine>-topk.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lotterykit.bench.results import machine
from lotterykit.cli import invoke

TENSORS = 20
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="270000,2300000,15000000")
    parser.add_argument("--densities", default=".1,.5")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", default="15")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    shapes = ",".join(f"{size}x{TENSORS}" for size in options.sizes.split(","))
    flags = ["--shape", shapes, "--density", options.densities, "--threads", options.threads]
    flags += ["--repeats", options.repeats, "--device", options.device]
    return invoke(["bench", "topk", *flags, "--json", str(RESULTS / f"{machine(options.device)}-topk.json")])


if __name__ == "__main__":
    sys.exit(main())
