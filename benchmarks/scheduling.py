"""What a sweep costs beside its cells: scheduling per batch and cell, throughput against workers, the store.

    python benchmarks/scheduling.py --out FOLDER [--executors inline,local,ray] [--workers 1,2] [--repeats 5]
    python benchmarks/scheduling.py --markdown FOLDER/<machine>-scheduling.json

Empty cells return a row of a real one's size at once; real cells are 300-sample, 2-epoch circle networks, 40
wide. Workers wait for each other before their first batch. A run tells when it starts (from the call to the
first rows) and how long a batch takes from then on. Runs of all settings take turns; medians are written to
FOLDER/<machine>-scheduling.json. With --markdown the tables of docs/scaling.md are printed, with the time of
a million cells by the model there. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lotterykit.bench import results
from lotterykit.experiments.executors import find_executor
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.limits import resident_bytes
from lotterykit.experiments.spec import BATCH, CellSpec, group
from lotterykit.experiments.store import Store
from lotterykit.experiments.sweep import RUNNER
from lotterykit.experiments.tasks import Failed, Rows, load_runner

RUNNERS = Path(__file__).stem
MEETING = "LOTTERYKIT_MEETING"  # names the folder where workers note that they are there, and how many
SMALL = {"task": "circle", "method": "magnitude", "samples": 300, "epochs": 2, "width": 40}
ROW_TEXT = "x" * 9000  # fills an empty cell's row up to what a real one's takes
MILLION = 1_000_000
CELL_SECONDS = 0.5  # of a core; a cell of the published study takes about that


@dataclass(frozen=True)
class Setting:
    """One way to run cells: `batches` of `size`."""

    executor: str
    workers: int
    cells: str
    size: int
    batches: int


def empty(cells: list[CellSpec], *, progress: Any = None) -> Rows:
    """A runner that does nothing: rows of a real one's size."""
    meet()
    return rows_of(cells)


def real(cells: list[CellSpec], *, progress: Any = None) -> Rows:
    """The runner of sweeps."""
    run = load_runner(RUNNER)
    meet()
    return run(cells, progress=progress)


def meet() -> None:
    """Wait until all workers are there: the quick would finish while the slow still start."""
    folder, workers = os.environ[MEETING].rsplit(":", 1)
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < int(workers):
        time.sleep(0.01)


def rows_of(cells: list[CellSpec]) -> Rows:
    return [{"key": c.key(), "spec": c.model_dump(mode="json"), "filling": ROW_TEXT} for c in cells]


class Clock:
    """A report that notes when the rows of each batch arrive."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def rows(self, cells: list[CellSpec], rows: Rows) -> None:
        self.arrivals.append(time.perf_counter())

    def failed(self, failure: Failed) -> None:
        raise RuntimeError(f"a cell failed, nothing was measured: {failure.error}")

    def running(self, shares: list[tuple[list[CellSpec], float]]) -> None:
        """Progress is nobody's business here."""


def cells_of(count: int) -> list[CellSpec]:
    return Grid(spec={**SMALL, "density": 0.1}, seeds=count, oracle=False).cells()


def measure(setting: Setting) -> dict[str, float]:
    """Seconds until the first rows, and of a batch from the time on when every worker has had one."""
    batches = group(cells_of(setting.batches * setting.size), setting.size)
    clock, run = Clock(), find_executor(setting.executor)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[MEETING] = f"{folder}:{setting.workers}"
        began = time.perf_counter()
        run(batches, runner=f"{RUNNERS}:{setting.cells}", workers=setting.workers, report=clock)
    warm = min(setting.workers, setting.batches - 1)
    steady = clock.arrivals[-1] - clock.arrivals[warm - 1]
    return {"start": clock.arrivals[0] - began, "batch": steady / (setting.batches - warm)}


def measure_store(folder: Path, count: int) -> dict[str, float]:
    """Seconds a batch and a row of the store's commits, seconds a cell of what a sweep does before it starts,
    bytes a cell of this process and a row of the file."""
    before, began = resident_bytes(), time.perf_counter()
    cells = cells_of(count)
    found = {"cell_bytes": (resident_bytes() - before) / count}
    found["cell"] = (time.perf_counter() - began) / count
    path = folder / "cost.sqlite"
    with Store(path, write=True) as store:
        found["plan"] = _seconds(lambda: store.plan(cells)) / count
        rows = rows_of(cells)
        single, many = rows[: len(rows) // 4], rows[len(rows) // 4 :]
        one = statistics.median(_seconds(lambda row=row: store.commit([row])) for row in single)
        parts = [many[i : i + BATCH] for i in range(0, len(many) - BATCH + 1, BATCH)]
        full = statistics.median(_seconds(lambda part=part: store.commit(part)) for part in parts)
        found["done"] = _seconds(lambda: store.done(cells)) / count
    found["row"] = max(0.0, (full - one) / (BATCH - 1))
    found["commit"] = max(0.0, one - found["row"])
    found["row_bytes"] = path.stat().st_size / count
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def settings(executors: Sequence[str], workers: Sequence[int], batches: int) -> list[Setting]:
    """Empty cells one and `BATCH` a batch, real ones 16; in this process there is one worker."""
    found = []
    for executor in executors:
        for count in workers if executor != "inline" else [1]:
            found += [Setting(executor, count, "empty", size, batches) for size in (1, BATCH)]
            found.append(Setting(executor, count, "real", 16, max(6, batches // 4)))
    return found


def measure_all(chosen: Sequence[Setting], repeats: int) -> list[dict[str, Any]]:
    """A row a setting: medians of runs that take turns."""
    times: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in chosen}
    for turn in range(repeats):
        for setting in chosen if turn % 2 == 0 else reversed(chosen):
            times[setting].append(measure(setting))
            print(f"{turn + 1}/{repeats} {setting}: {times[setting][-1]}", file=sys.stderr, flush=True)
    rows = []
    for setting, found in times.items():
        medians = {name: statistics.median(t[name] for t in found) for name in found[0]}
        rows.append({**asdict(setting), **medians, "cells_per_second": setting.size / medians["batch"]})
    return rows


@dataclass(frozen=True)
class Costs:
    """Seconds: until workers run; of a batch and a cell on a worker, beside its work; of a batch in the
    parent (at most: batches of empty cells at the most workers); of the store, a batch and a row; of what
    precedes, a cell."""

    start: float
    batch: float
    cell: float
    parent: float
    commit: float
    row: float
    before: float


def costs_of(content: dict[str, Any], executor: str) -> Costs:
    """The costs of an executor in a results file of ours."""
    rows = [r for r in content["rows"] if r["executor"] == executor and r["cells"] == "empty"]
    one = {r["size"]: r for r in rows if r["workers"] == min(r["workers"] for r in rows)}
    most = max(rows, key=lambda r: (r["workers"], r["size"]))
    cell = max(0.0, (one[BATCH]["batch"] - one[1]["batch"]) / (BATCH - 1))
    store = content["store"]
    return Costs(
        start=one[1]["start"],
        batch=max(0.0, one[1]["batch"] - cell),
        cell=cell,
        parent=most["batch"],
        commit=store["commit"],
        row=store["row"],
        before=store["cell"] + store["plan"] + store["done"],
    )


def model(costs: Costs, cells: int, workers: int, seconds: float, size: int = BATCH) -> dict[str, float]:
    """Seconds of a sweep of `cells` of `seconds` each in batches of `size`, as docs/scaling.md has it; the
    parts that workers and the parent take at the same time, and the efficiency."""
    before = costs.start + cells * costs.before
    working = cells / workers * (costs.batch / size + costs.cell + seconds)
    parent = cells * ((costs.parent + costs.commit) / size + costs.row)
    total = before + max(working, parent)
    ideal = cells * seconds / workers
    return {"before": before, "working": working, "parent": parent, "total": total, "share": ideal / total}


def markdown(content: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    lines = [f"Machine: {content['cpu']}, {content['cores']} cores. {content['date'][:10]}.", ""]
    lines += [
        "| executor | workers | cells | a batch | start, s | a batch, ms | a cell, ms | cells a second |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in content["rows"]:
        lines.append(
            f"| {r['executor']} | {r['workers']} | {r['cells']} | {r['size']} | {r['start']:.2f} "
            f"| {1e3 * r['batch']:.2f} | {1e3 * r['batch'] / r['size']:.3f} | {r['cells_per_second']:.0f} |"
        )
    s = content["store"]
    lines += ["", "| of the parent and its store | a cell | a batch |", "|---|---|---|"]
    lines.append(f"| specification | {1e6 * s['cell']:.0f} us, {s['cell_bytes']:.0f} bytes of memory | |")
    lines.append(f"| planned, then asked whether done | {1e6 * (s['plan'] + s['done']):.0f} us | |")
    lines.append(f"| committed | {1e6 * s['row']:.0f} us | {1e3 * s['commit']:.2f} ms |")
    lines.append(f"| on disk | {s['row_bytes']:.0f} bytes | |")
    lines += ["", f"A million cells of {CELL_SECONDS} s, in batches of {BATCH}:", ""]
    lines += [
        "| executor | workers | before, h | workers' part, h | parent's part, h | total, h | efficiency |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for executor in dict.fromkeys(r["executor"] for r in content["rows"]):
        counts = {"inline": (1,), "local": (2, 16, 64)}.get(executor, (2, 16, 64, 256, 1024))
        for workers in counts:
            m = model(costs_of(content, executor), MILLION, workers, CELL_SECONDS)
            hours = " | ".join(f"{m[k] / 3600:.2f}" for k in ("before", "working", "parent", "total"))
            lines.append(f"| {executor} | {workers} | {hours} | {m['share']:.0%} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--executors", default="inline,local,ray")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--batches", type=int, default=60, help="batches of empty cells a run")
    parser.add_argument("--store-cells", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.markdown is not None:
        print(markdown(json.loads(options.markdown.read_text())))
        return 0
    if options.out is None or not options.out.is_dir():
        parser.error("--out must name a folder that exists")
    workers = [int(word) for word in options.workers.split(",")]
    chosen = settings(options.executors.split(","), workers, options.batches)
    for executor in options.executors.split(","):
        find_executor(executor)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        store = measure_store(Path(folder), options.store_cells)
    rows = measure_all(chosen, options.repeats)
    content = results.document(rows, repeats=options.repeats, store=store)
    content |= {"unit": "seconds, bytes", "statistic": "median of runs in alternating turns"}
    path = options.out / f"{results.machine()}-scheduling.json"
    results.write(path, content)
    print(markdown(content))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
