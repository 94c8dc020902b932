"""Readers of what belongs to sweeps: TOML specs, stores, results of benchmarks."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

from damaged import Mutant, damaged_bytes, damaged_json
from damaged_stores import damaged_pages, damaged_tables
from damaged_toml import damaged_toml
from fake_runner import row as fake_row
from reader import Reader, of

from lotterykit.bench import results
from lotterykit.errors import ArgumentError
from lotterykit.experiments.export import export
from lotterykit.experiments.grid import load_toml
from lotterykit.experiments.search_spec import load_search
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.store import Store
from lotterykit.experiments.tracking import run_of
from lotterykit.reports.tables import summary_table


def sweeps(folder: Path) -> Reader:
    """`load_toml`, and the cells of a grid that is not too large."""
    samples = [
        b'seeds = 3\noracle = false\n[spec]\ntask = "circle"\nwidth = 30\n[grid]\n'
        b'method = ["snip", "random"]\n'
        b"density = [0.1, 0.01]\n",
        b'seeds = [0, 7]\n[spec]\ntask = "relu"\npipeline = "multi-shot"\nshots = 3\n'
        b'method = "synflow"\nnoise = 0.1\n'
        b'density = ["truth", 0.5]\ninvert = false\nrounds = 10\n',
    ]

    def read(path: Path, mutant: Mutant) -> None:
        grid = load_toml(path)
        count = grid.seeds if isinstance(grid.seeds, int) else len(grid.seeds or [0])
        for value in {**grid.spec, **grid.grid}.values():
            count *= len(value) if isinstance(value, list) else 1
        if count <= 50:
            assert all(len(cell.key()) == 64 for cell in grid.cells())

    return Reader(samples, of(samples, damaged_toml), read)


def searches(folder: Path) -> Reader:
    """`load_search`: a spec that can be written down again."""
    samples = [
        b'method = "imp"\ndensity = 0.1\nnet = "lenet"\ndata = "fashion-mnist"\nrewind = "500it"\n'
        b"steps = 1500\n"
        b'lr = 1.2e-3\nprune_fraction = 0.2\nafter = "rewind"\n',
        b'method = "edge-popup"\ndensity = 0.5\nscope = "local"\nscore_epochs = 10\nscore_lr = 0.1\n'
        b"anneal = true\n",
    ]

    def read(path: Path, mutant: Mutant) -> None:
        spec = load_search(path)
        assert type(spec)(**json.loads(json.dumps(spec.model_dump()))) == spec

    return Reader(samples, of(samples, damaged_toml), read)


def stores(folder: Path) -> Reader:
    """`Store`, read, exported and written to: a row that it gives is one that was written to it."""
    path = folder / "sample.sqlite"
    cells = [
        CellSpec(task=t, method="snip", density=d, seed=s)
        for t in ("circle", "relu")
        for d in (0.1, 0.5)
        for s in (0, 1)
    ]
    rows = [fake_row(cell) for cell in cells]
    with Store(path, write=True) as store:
        store.plan(cells)
        store.commit(rows[:-2])
        store.fail(cells[-2], "no reason", 2)
    data = bytearray(path.read_bytes())
    path.unlink()
    samples = [bytes(data)]
    data[18:20] = b"\1\1"  # without a log, which a database in memory cannot have
    plain = bytes(data)
    known = {json.dumps(json.loads(json.dumps(r)), sort_keys=True) for r in rows}

    def mutant(rng: Random) -> Mutant:
        kind = rng.randrange(10)
        if kind < 5:
            return Mutant(*damaged_pages(rng, samples[0]))
        if kind < 8:
            return Mutant(*damaged_tables(rng, plain))
        return Mutant(_forged_store(rng, plain, rows), "forged rows")

    def read(path: Path, mutant: Mutant) -> None:
        try:
            with Store(path) as store:
                got = list(store.rows())
                store.planned(), store.failures(), store.damaged(), store.check(), store.done(cells)
                if mutant.kind == "forged rows":
                    with suppress(FileNotFoundError):
                        export(store, folder / "out.jsonl"), export(store, folder / "out.csv")
                    summary_table(got)
                    store.brief()
                    for row in got:
                        with suppress(ArgumentError):
                            run_of(row)
                else:
                    assert all(json.dumps(row, sort_keys=True) in known for row in got)
            with Store(path, write=True) as store:
                store.plan(cells)
                store.commit(rows[-1:])
                assert cells[-1] in store.done(cells[-1:])[0]
        finally:
            for left in folder.glob(f"{path.name}*"):  # also the file: SQLite knows it by its inode
                left.unlink()

    return Reader(samples, mutant, read, ".sqlite")


def _forged_store(rng: Random, data: bytes, rows: list[dict[str, Any]]) -> bytes:
    """The sample with a row whose content is damaged and whose key and digest fit it."""
    row = rng.choice(rows[:-2])
    key, text = row["key"], damaged_json(rng, json.dumps(row))
    spec = damaged_json(rng, json.dumps(row["spec"])) if rng.random() < 0.3 else json.dumps(row["spec"])
    digest = hashlib.sha256("\0".join((key, spec, text)).encode("utf-8", "surrogatepass")).hexdigest()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.deserialize(data)
        content = [t.encode("utf-8", "surrogatepass") for t in (spec, text)]
        change = "UPDATE cells SET spec = CAST(? AS TEXT), result = CAST(? AS TEXT), digest = ? WHERE key = ?"
        db.execute(change, (*content, digest, key))
        return db.serialize()


def benchmark_results(folder: Path) -> Reader:
    """A results file of `lotterykit bench`."""
    row = {"op": "spmm", "shape": [1, 2], "density": 0.1, "work": "forward", "dtype": "float32", "threads": 1,
           "us": {"cpu": {"median": 1.5}, "dense": {"median": 3}}}  # fmt: skip
    samples = [json.dumps({"machine": "x", "rows": [row, row]}).encode()]

    def damaged(rng: Random, data: bytes) -> tuple[bytes, str]:
        if rng.random() < 0.4:
            return damaged_bytes(rng, data)
        return damaged_json(rng, data).encode("utf-8", "surrogatepass"), "tree"

    def read(path: Path, mutant: Mutant) -> None:
        assert all(time["median"] > 0 for row in results.read(path)["rows"] for time in row["us"].values())

    return Reader(samples, of(samples, damaged), read)
