"""Whether a results file bears out a row of `ROUTES` or of `CROSSOVERS`, as `benchmarks/routes.py` and
`benchmarks/layers.py` measure and tests ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lotterykit.bench import results
from lotterykit.bench.peers import PEERS
from lotterykit.ops.crossovers import Crossover
from lotterykit.ops.dispatch import Route

# At which a crossover is measured
BATCHES = {"linear": frozenset({32, 128, 512}), "conv2d": frozenset({8, 32, 128})}
LEAST = 0.001  # a band that begins lower need not be measured lower


def entry_of(route: Route) -> tuple[str, str] | None:
    """The bench op and the peer that stand for the route's op, or None where `PEERS` has no row of it."""
    for name, peer in PEERS.items():
        if peer.ours[:1] == (route.op,):
            return next(iter(peer.serves)) if name not in peer.serves else name, name
    return None


def refusal(route: Route, root: Path) -> str | None:
    """Why the file that `route` cites is no evidence for it, or None.

    It must parse, and hold, for every dtype of the row, settings that span its density band, timed on the
    row's backend and on the reference, the backend never being the slower one. What `lotterykit bench` does
    not serve cites the script that measured it, "python benchmarks/x.py: ... (file.json)", and both must be
    there.
    """
    if route.evidence is None or route.backend == "reference":
        return None
    if route.evidence.startswith("python "):
        named = re.findall(r"benchmarks/\w+\.py|[\w-]+\.json", route.evidence)
        paths = [name if "/" in name else f"benchmarks/results/{name}" for name in named]
        missing = [name for name in paths if not (root / name).is_file()]
        if len(paths) < 2 or missing:
            return f"{route.evidence!r} names no script and file that exist"
        return None
    path = root / route.evidence
    if not path.is_file():
        return f"{route.evidence} does not exist"
    return uncovered(route, results.read(path)["rows"])


def uncovered(route: Route, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What of a route's dtypes and density band `rows` do not bear out, or None."""
    found = entry_of(route)
    if found is None:
        return f"no peer of lotterykit.bench stands for {route.op}"
    mine, reference = f"{found[1]}:{route.backend}", f"{found[1]}:reference"
    low, high = route.density
    for dtype in (str(d).removeprefix("torch.") for d in route.dtypes):
        measured = [r for r in rows if r["dtype"] == dtype and {mine, reference} <= set(r["us"])]
        densities = [row["density"] for row in measured]
        if not densities or min(densities) > max(low, LEAST) or max(densities) < high:
            span = f"{min(densities):g} to {max(densities):g}" if densities else "nothing"
            return f"{mine} in {dtype} serves density {low:g} to {high:g}, measured was {span}"
        for row in measured:
            ratio = row["us"][reference]["median"] / row["us"][mine]["median"]
            if low <= row["density"] <= high and ratio < 1:
                where = f"{'x'.join(map(str, row['shape']))} density {row['density']:g} {row['work']}"
                return f"{mine} in {dtype} is slower than the reference at {where}: {ratio:.2f}x"
    return None


def unfounded(crossover: Crossover, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Where `rows` do not show the sparse layer to be the fastest within a crossover, or None.

    They must hold its smallest layer at its highest density, with each of its kind's BATCHES, and the sparse
    layer must be faster than every other in every row within. Crossovers of a GPU are judged by
    lotterykit.bench.gpu_crossover.
    """
    if crossover.density is None:
        return "no density is measured"
    kind = [r for r in rows if r["op"] == f"{crossover.kind}-layer"]
    within = [r for r in kind if r["weights"] >= crossover.weights and r["density"] <= crossover.density]
    edge = {
        r["shape"][0]
        for r in within
        if r["weights"] == crossover.weights and r["density"] == crossover.density
    }
    batches = BATCHES[crossover.kind]
    if not edge >= batches:
        at = f"{crossover.weights} weights, density {crossover.density:g}"
        return f"{at}: measured with batches {sorted(edge)}, not {sorted(batches)}"
    for row in within:
        sparse = row["us"]["sparse"]["median"]
        for name, taken in row["us"].items():
            if name != "sparse" and taken["median"] <= sparse:
                where = f"{'x'.join(map(str, row['shape']))} density {row['density']:g}"
                return f"{name} is faster than sparse at {where}: {sparse / taken['median']:.2f}x"
    return None
