"""A sweep in a process of its own that meets with trouble: `python sweeping.py ORDER`, as JSON.

ORDER: store (file), kind (of SWEEPS), and at most one trouble: at, nth, number (see `Point`); bytes, deadly
(see `limit_files`); pages (see `limit_pages`). It says on stdout which cells workers begin ("begin KEY PID"),
which are in the store ("kept KEY"), where it was stopped ("reached POINT"), why it ended ("refused REASON").
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import trouble

sys.path.append(str(Path(__file__).resolve().parent.parent / "experiments"))

WORKERS = 3
REFUSED = 3  # the exit status of a sweep that a `StoreError` ended
BUSY_SECONDS = 1.0  # until a writer gives up on one that was stopped within a transaction
# fields, grid, seeds. The cells of "quick" are wide, which makes their batches small: seven cells.
SWEEPS = {
    "quick": ({"task": "circle", "method": "snip", "width": 1000}, {"density": [0.1, 0.5]}, 28),
    "real": (
        {"task": "circle", "samples": 200, "epochs": 1, "width": 40},
        {"method": ["magnitude", "synflow"], "density": [0.1, "truth"]},
        12,
    ),
}


def sweep_of(kind: str) -> Any:
    from lotterykit.experiments.sweep import Sweep

    spec, grid, seeds = SWEEPS[kind]
    return Sweep(spec, grid, seeds, runner=f"sweeping:{kind}")


def quick(cells: list, *, progress: Any = None) -> list:
    """Rows that depend on their specs alone, a 50th of a second each."""
    from fake_runner import row

    rows = []
    for cell in cells:
        trouble.say("begin", f"{cell.key()} {os.getpid()}")
        time.sleep(0.02)
        rows.append(row(cell))
    return rows


def real(cells: list, *, progress: Any = None) -> list:
    """Networks that are planted, pruned and trained."""
    from lotterykit.experiments.plant_and_seek import run_batch

    for cell in cells:
        trouble.say("begin", f"{cell.key()} {os.getpid()}")
    return run_batch(cells, progress=progress)


def watched() -> list[str]:
    """The files whose lines are points: all that write the store."""
    from lotterykit.experiments import lock, schema, store, sweep

    return [str(module.__file__) for module in (lock, schema, store, sweep)]


def prepare(order: dict[str, Any], point: trouble.Point) -> None:
    """Arrange that this process meets with what `order` says."""
    from lotterykit.experiments import store

    connect, commit = store.connect, store.Store.commit

    def connected(path: Path, write: bool) -> sqlite3.Connection:
        db = connect(path, write)
        db.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
        db.set_trace_callback(lambda text: point(trouble.statement(text)))
        if "pages" in order:
            trouble.limit_pages(db, order["pages"])
        return db

    def committed(self: store.Store, rows: list) -> int:
        count = commit(self, rows)
        for row in rows:
            trouble.say("kept", row["key"])
        return count

    store.connect, store.Store.commit = connected, committed  # type: ignore[method-assign]
    if "bytes" in order:
        trouble.limit_files(order["bytes"], deadly=order["deadly"])
    if "at" in order or "note" in order:
        trouble.watch(watched(), point)


def main() -> None:
    from lotterykit.errors import StoreError

    order = json.loads(sys.argv[1])
    point = trouble.Point(order.get("at"), order.get("nth", 1), order.get("number", 9))
    prepare(order, point)
    try:
        sweep_of(order["kind"]).run(workers=WORKERS, store=order["store"])
    except StoreError as error:
        trouble.say("refused", error)
        sys.exit(REFUSED)
    finally:
        sys.settrace(None)
        if "note" in order:
            Path(order["note"]).write_text(json.dumps(point.counts))


if __name__ == "__main__":
    main()
