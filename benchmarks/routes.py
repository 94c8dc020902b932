"""The evidence behind ROUTES: each row's backend against the reference, over its dtypes and density band.

    python benchmarks/routes.py [--repeats 9] [--ops conv,synflow]

Writes results/<machine>-routes.json and prints every row that the file does not bear out (exit status 1).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lotterykit.bench import results
from lotterykit.bench.evidence import entry_of, uncovered
from lotterykit.bench.kernels import check_repeats, entries_of, grid, measure_all
from lotterykit.bench.problems import OPS
from lotterykit.bench.tables import show_rows
from lotterykit.ops.dispatch import missing
from lotterykit.ops.routes import ROUTES

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "topk": ("20000x20", "270000x20"),
    "conv": ("32x64x16x64", "8x16x8x16"),
    "replicas": ("16x100x30",),
    "scores": ("16x100x30",),
    "synflow": ("256x128x64x10",),
    "synflow-scores": ("784x300x100x10", "100x100x10"),
}
LAYERS = ("64x784x300", "32x100x100")  # a product: a layer of 784-300-100 and a small one
DENSITIES = (1.0, 0.5, 0.1, 0.01, 0.001)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--ops", default="", help="measure these alone and keep the file's other rows")
    parser.add_argument("--clock", default="wall", help="cpu: CPU time, where the machine is shared")
    options = parser.parse_args()
    repeats, ops = options.repeats, options.ops.split(",") if options.ops else [*OPS]
    check_repeats(repeats)
    path = RESULTS / f"{results.machine()}-routes.json"
    kept = results.read(path)["rows"] if options.ops and path.exists() else []
    rows, faults = [row for row in kept if row["op"] not in ops], []
    for route in ROUTES:
        found = entry_of(route)
        if route.backend == "reference" or missing(route.backend) or found is None:
            continue
        op, peer = found
        if op not in ops:
            continue
        entries = entries_of(op, [peer], [route.backend, "reference"])
        axes = {
            "shapes": SHAPES.get(op, LAYERS),
            "densities": sorted({*DENSITIES, *(d for d in route.density if d > 0)}, reverse=True),
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in route.dtypes],
            "device": "cpu" if route.device == "any" else route.device,
        }
        measured = measure_all(grid(op, **axes), entries, repeats=repeats, clock=options.clock)
        show_rows(measured)
        rows += measured
        if (fault := uncovered(route, measured)) is not None:
            faults.append(fault)
    results.write(path, results.document(rows, repeats=repeats))
    print("\n".join([str(path), *faults]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
