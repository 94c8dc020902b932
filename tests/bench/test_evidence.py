"""Every row of ROUTES that cites a file is borne out by it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lotterykit.bench import results
from lotterykit.bench.evidence import entry_of, refusal, uncovered, unfounded
from lotterykit.ops.crossovers import Crossover
from lotterykit.ops.dispatch import Route
from lotterykit.ops.routes import ROUTES

ROOT = Path(__file__).parents[2]
ROUTE = Route(
    op="spmm",
    backend="cpu",
    device="cpu",
    kernel="a:b",
    evidence="a.json",
    dtypes=(torch.float32, torch.float64),
    density=(0.0, 0.5),
)


def rows(density, dtype="float32", mine=1.0, reference=2.0):
    us = {"spmm:cpu": {"median": mine}, "spmm:reference": {"median": reference}}
    return {
        "op": "spmm", "shape": [1, 2, 3], "work": "product", "threads": 1,
        "density": density, "dtype": dtype, "us": us,
    }  # fmt: skip


GOOD = [rows(density, dtype) for density in (0.001, 0.5) for dtype in ("float32", "float64")]


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.op}-{r.backend}")
def test_every_cited_file_covers_the_dtypes_and_the_band_of_its_row(route):
    assert refusal(route, ROOT) is None


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (GOOD, None),
        (GOOD[:1], "spmm:cpu in float32 serves density 0 to 0.5, measured was 0.001 to 0.001"),
        (GOOD[::2], "spmm:cpu in float64 serves density 0 to 0.5, measured was nothing"),
        ([r | {"density": max(r["density"], 0.01)} for r in GOOD], "measured was 0.01 to 0.5"),
        ([*GOOD, rows(0.3, mine=4.0)], "slower than the reference at 1x2x3 density 0.3 product: 0.50x"),
        ([*GOOD, rows(0.9, mine=4.0)], None),
        ([r | {"us": {"spmm:cpu": {"median": 1.0}}} for r in GOOD], "measured was nothing"),
    ],
)
def test_what_the_rows_do_not_bear_out_is_said(measured, says):
    found = uncovered(ROUTE, measured)
    assert found is None if says is None else says in found


def test_a_missing_file_and_an_op_without_a_peer(tmp_path):
    assert refusal(ROUTE, tmp_path) == "a.json does not exist"
    results.write(tmp_path / "a.json", results.document(GOOD, repeats=1))
    assert refusal(ROUTE, tmp_path) is None
    other = dataclasses.replace(ROUTE, op="match_neurons")
    assert refusal(other, tmp_path) == "no peer of lotterykit.bench stands for match_neurons"
    assert refusal(dataclasses.replace(other, evidence=None), tmp_path) is None
    for words, good in (("(x86_64-avx2-planting.json)", True), ("(none.json)", False), ("", False)):
        cited = dataclasses.replace(other, evidence=f"python benchmarks/planting.py {words}")
        assert (refusal(cited, ROOT) is None) == good


def test_the_bench_op_of_a_route():
    assert entry_of(ROUTE) == ("spmm", "spmm")
    assert entry_of(dataclasses.replace(ROUTE, op="topk_mask")) == ("topk", "topk_mask")
    assert entry_of(dataclasses.replace(ROUTE, op="masked_linear")) == ("linear", "masked_linear")
    assert entry_of(dataclasses.replace(ROUTE, op="sparse_conv2d")) == ("conv", "sparse_conv2d")
    assert entry_of(dataclasses.replace(ROUTE, op="synflow_scores")) == ("synflow-scores", "synflow_scores")


CROSSOVER = Crossover("linear", 400, 0.1, "a.json")


def layers(batch, density=0.1, shape=(20, 20), op="linear-layer", **times):
    us = {
        name: {"median": time}
        for name, time in ({"sparse": 1.0, "masked": 2.0, "plain": 1.5} | times).items()
    }
    weights = shape[0] * shape[1]
    return {"op": op, "shape": [batch, *shape], "density": density, "us": us, "weights": weights}


EDGE = [layers(batch) for batch in (32, 128, 512)]


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (EDGE, None),
        (EDGE[1:], "400 weights, density 0.1: measured with batches [128, 512], not [32, 128, 512]"),
        ([layers(1), *EDGE[:2]], "batches [1, 32, 128], not"),
        ([r | {"op": "conv2d-layer"} for r in EDGE], "measured with batches []"),
        ([*EDGE, layers(1, 0.01, plain=0.5)], "plain is faster than sparse at 1x20x20 density 0.01: 2.00x"),
        ([*EDGE, layers(1, shape=(21, 20), masked=1.0)], "masked is faster than sparse at 1x21x20"),
        ([*EDGE, layers(1, 0.2, plain=0.5), layers(1, shape=(19, 20), plain=0.5)], None),
        ([*EDGE, layers(1, op="conv2d-layer", plain=0.5)], None),
    ],
)
def test_a_crossover_holds_where_sparse_is_the_fastest_throughout(measured, says):
    found = unfounded(CROSSOVER, measured)
    assert found is None if says is None else says in found
