import json
from pathlib import Path

import pytest

from lotterykit.bench import goals, results
from lotterykit.bench.goals import (
    CPU_GOALS,
    Goal,
    best_over,
    judge,
    judge_all,
    line,
    over,
    over_better,
    reads,
)
from lotterykit.bench.problems import OPS, parse_shape
from lotterykit.errors import ArgumentError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def row(ratio, **changes):
    given = {"op": "linear", "shape": [128, 1024, 1024], "density": 0.1, "work": "forward"}
    us = {name: {"median": r} for name, r in ratio.items()} | {"spmm": {"median": 1.0}}
    given |= {"dtype": "float32", "threads": 1, "us": us, "ratio": ratio, "ours": "spmm"}
    return given | changes


GOAL = Goal("X1", "a product", "linear", {"density": [0.1, 0.01]}, over("dense"), 3.0)


def test_the_worst_row_that_matches_decides():
    rows = [row({"dense": 9.0}), row({"dense": 2.0}, density=0.01), row({"dense": 0.1}, density=0.5)]
    verdict = judge(rows, GOAL)
    assert (verdict.found, verdict.holds, verdict.word) == (2.0, False, "missed")
    assert verdict.where == "128x1024x1024 density 0.01 forward"
    assert judge(rows[:1], GOAL).word == "holds"
    assert judge(rows[2:], GOAL).word == "not measured"
    assert not judge([row({"sparselab": 9.0})], GOAL).holds


def test_a_limit_from_above_is_judged_by_the_highest():
    limit = Goal("X2", "reads", "topk", {}, reads, 3.0, " reads", most=True)
    rows = [row({"one-read": 0.5}), row({"one-read": 0.25})]
    assert judge(rows, limit).found == 4.0
    assert judge(rows[:1], limit).holds


def test_the_best_peer_is_neither_ours_nor_a_floor():
    times = {"dense": 3.0, "torch-csr": 5.0, "masked_linear": 0.5, "spmm:reference": 0.1, "one-read": 0.2}
    assert best_over("spmm")(row(times)) == 3.0
    assert best_over("auto")(row(times | {"auto": 1.5})) == 2.0
    assert best_over("auto")(row(times)) is None
    assert best_over("spmm")(row({"masked_linear": 0.5})) is None


def test_the_better_of_a_peers_ways_counts():
    better = over_better("dense-masked", "dense-masked-last")
    assert better(row({"dense-masked": 3.0, "dense-masked-last": 2.0, "dense": 1.0})) == 2.0
    assert better(row({"dense-masked": 3.0})) == 3.0
    assert better(row({"dense": 3.0})) is None


def test_goals_are_judged_from_the_files_of_this_machine(tmp_path):
    assert {verdict.word for verdict in judge_all(tmp_path)} == {"not measured"}
    content = results.document([row({"dense-masked": 8.0, "torch-csr": 1.5, "auto": 1.5})], repeats=2)
    results.write(tmp_path / f"{results.machine()}-linear.json", content)
    words = {verdict.goal.name: verdict.word for verdict in judge_all(tmp_path)}
    assert words["C1 at 0.1"] == "holds"
    assert words["C1 at 0.01"] == "not measured"
    assert words["C3 torch-csr"] == "missed"
    assert words["C3 best"] == "holds"


def test_every_goal_can_be_met_by_some_row():
    """The conditions name fields, ops and works that rows have: no goal is unreachable by a slip."""
    assert len({goal.name for goal in CPU_GOALS}) == len(CPU_GOALS)
    for goal in CPU_GOALS:
        assert set(goal.where) <= {"op", "shape", "density", "work", "dtype", "threads"}
        for op in goal.where["op"]:
            if op not in OPS:  # an op of a script alone
                assert f'"{op}"' in (BENCHMARKS / f"{goal.topic}.py").read_text()
                continue
            assert set(goal.where.get("work", OPS[op].works)) <= set(OPS[op].works)
            for shape in goal.where.get("shape", ()):
                assert list(parse_shape(op, "x".join(map(str, shape)))) == shape


def test_lines():
    assert line("G1", "what", None, 3.0) == "G1: not measured (what)"
    assert line("G1", "what", 2.0, 3.0) == "G1: missed, 2.00x of 3x (what)"
    assert line("G1", "what", 2.0, 3.0, " reads", most=True) == "G1: holds, 2.00 reads of 3 reads (what)"
    assert goals.gflops({}) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds no rows"),
        ("{}", "holds no rows"),
        ('{"rows": []}', "holds no rows"),
        ('{"rows": [3]}', "holds no rows"),
        (json.dumps({"rows": [row({"dense": 1.0}) | {"us": {"dense": 3}}]}), "holds no rows"),
        (json.dumps({"rows": [row({"dense": 1.0}) | {"us": {"dense": {"median": 0}}}]}), "holds no rows"),
    ],
)
def test_a_file_that_is_none_of_ours_is_one_line(tmp_path, text, says):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=says):
        results.read(path)


def test_a_document_says_what_it_was_measured_on(tmp_path):
    path = tmp_path / "x.json"
    results.write(path, results.document([row({"dense": 2.0})], repeats=7, ceilings=[]))
    content = results.read(path)
    assert {"machine", "cpu", "cores", "python", "versions", "date", "unit", "repeats", "rows"} <= set(
        content
    )
    assert content["versions"]["torch"]
    assert content["repeats"] == 7
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ArgumentError, match="No such file"):
        results.read(tmp_path / "absent.json")
