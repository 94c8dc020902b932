"""C7 and C8: a training step of small networks 2-100-100-100-4, by weights and by edge-popup's scores.

    python benchmarks/replicas.py [--shape 16x100x3000] [--repeats 9]

Adam, batch 32, one thread, float32; the shape is replicas x width x steps, about as many steps as a training
of Plant 'n' Seek makes. Weights train under random masks of each density and under those of a planted
ticket's shape, scores at the densities below 1. Peers: eager torch with fused Adam (with a sort per layer on
scores), one replica at a time, and the batched torch engine (`:reference`). Times are those of one step of
one replica. These are `lotterykit bench replicas` and `scores` with the goals' grid; it writes
results/<machine>-replicas.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lotterykit.bench import results
from lotterykit.bench.kernels import check_repeats, entries_of, grid, measure_all
from lotterykit.bench.tables import show_rows

RESULTS = Path(__file__).parent / "results"
SECONDS = 20.0  # of a peer: eager torch takes seconds a call
DENSITIES = {"replicas": (1.0, 0.5, 0.1, 0.01), "scores": (0.5, 0.1, 0.01)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="16x100x3000")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", default="wall", help="cpu: CPU time, where the machine is shared")
    options = parser.parse_args()
    check_repeats(options.repeats)
    rows = []
    for op, densities in DENSITIES.items():
        settings = grid(op, shapes=[options.shape], densities=densities)
        entries = entries_of(op, (), ("auto", "reference"))
        measured = measure_all(
            settings, entries, repeats=options.repeats, seconds=SECONDS, clock=options.clock
        )
        show_rows(measured)
        rows += measured
    path = RESULTS / f"{results.machine()}-replicas.json"
    results.write(path, results.document(rows, repeats=options.repeats))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
