"""The table of G7 on small sizes, and the crossovers and verdicts that tables give."""

from __future__ import annotations

import pytest

from lotterykit.bench import gpu_crossover
from lotterykit.bench.gpu_crossover import PEERS, crossovers, row_name, unfounded, verdicts
from lotterykit.ops.crossovers import Crossover

SMALL, LARGE = (512, 1024, 1024), (512, 4096, 4096)


def table_of(precision, shape, **densities):
    """Rows where the sparse layer takes so many us, all others 90 to 100: d01=70.0 for density .01."""
    table = {}
    for name, us in densities.items():
        times = {"sparse": us, "dense-masked": 100.0, "masked": 90.0, "dense": 95.0}
        density = float(f"0.{name[1:]}")
        table[row_name(precision, shape, density)] = {peer: {"us": t} for peer, t in times.items()}
    return table


def test_the_table_holds_all_peers_of_every_setting():
    tables = []
    gpu_crossover.time_crossover(
        tables.append, shapes=((4, 6, 8),), densities=(0.5, 0.01), device="cpu", seconds=0.001
    )
    assert len(tables[-1]) == 6
    assert all(set(row) == set(PEERS) for row in tables[-1].values())
    assert all(timing["us"] > 0 for row in tables[-1].values() for timing in row.values())
    assert len(verdicts("crossover", tables[-1])) >= 3


def test_a_peer_that_cannot_run_leaves_a_hole_and_no_crossover(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no kernel for it")

    monkeypatch.setitem(PEERS, "masked", ("masked", broken))
    tables = []
    shape = (4, 6, 8)
    gpu_crossover.time_crossover(
        tables.append, shapes=(shape,), densities=(0.01,), device="cpu", seconds=0.001
    )
    assert "bfloat16 4x6x8 0.01: masked does not run: no kernel for it" in caplog.text
    assert crossovers(tables[-1]) == []


def test_a_crossover_holds_at_all_shapes_and_all_lower_densities():
    table = table_of("tf32", LARGE, d001=10.0, d01=40.0, d03=80.0, d1=200.0)
    table |= table_of("tf32", SMALL, d001=20.0, d01=95.0, d03=80.0)
    assert crossovers(table) == [Crossover("linear", 1024 * 1024, 0.001, None, "cuda", ("tf32",))]
    table |= table_of("tf32", SMALL, d001=120.0)
    assert crossovers(table) == [Crossover("linear", 4096 * 4096, 0.03, None, "cuda", ("tf32",))]
    assert crossovers(table_of("bfloat16", LARGE, d001=99.0)) == []


def test_a_row_must_be_borne_out():
    table = table_of("bfloat16", LARGE, d001=10.0, d03=60.0, d1=200.0)
    row = Crossover("linear", 4096 * 4096, 0.03, "file", "cuda", ("bfloat16",))
    assert unfounded(row, table) is None
    assert unfounded(row._replace(density=0.01), table) is None
    assert "up to density 0.03" in str(unfounded(row._replace(density=0.05), table))
    assert "from 16777216 weights on" in str(unfounded(row._replace(weights=2**20), table))
    assert "nowhere the fastest in tf32" in str(unfounded(row._replace(precisions=("tf32",)), table))


@pytest.mark.parametrize(("most", "says"), [(0.03, "holds"), (0.1, "missed"), (0.001, "missed")])
def test_g7_judges_the_worst_choice(most, says):
    table = table_of("tf32", LARGE, d001=10.0, d03=60.0, d1=200.0)
    table = {row: times | {"masked": {"us": 101.0}} for row, times in table.items()}
    rows = (Crossover("linear", 2**20, most, "file", "cuda", ("tf32",)),)
    lines = verdicts("crossover", table, rows)
    assert lines[1].startswith(f"G7 tf32: {says}")
    assert lines[0].startswith("G7 bfloat16: not measured")
    assert lines[3] == f"to write down: {crossovers(table, 'this file')[0]}"


def test_without_a_written_crossover_nothing_is_judged():
    table = table_of("tf32", LARGE, d001=10.0)
    unwritten = (Crossover("linear", 2**20, None, None, "cuda", ("tf32",)),)
    assert all("not measured" in text for text in verdicts("crossover", table, unwritten)[:3])
    assert all("not measured" in text for text in verdicts("crossover", {}))
    assert verdicts("spmm", table) == []
