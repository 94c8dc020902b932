import sys
import xml.etree.ElementTree as ElementTree

import pytest

from lotterykit.bench import charts
from lotterykit.errors import ArgumentError, LotterykitError

ROOF = {"dtype": "float32", "threads": 1, "gflops": 90.0, "L2": 80.0, "L3": 60.0, "memory": 15.0}


def row(density, spmm, **changes):
    us = {"spmm": spmm, "dense-masked": 10.0, "sparselab": 2 * spmm, "one-read": 1.0}
    given = {"op": "linear", "shape": [8, 16, 16], "density": density, "work": "forward", "dtype": "float32"}
    given |= {"threads": 1, "device": "cpu", "flops": 1e6 * density, "traffic": 1e5}
    given |= {"us": {name: {"median": time} for name, time in us.items()}, "ours": "spmm"}
    return given | changes


def document(*rows):
    versions = {"torch": "2.13"}
    return {"rows": list(rows), "machine": "m", "cpu": "c $1$", "repeats": 3, "versions": versions} | {
        "ceilings": [ROOF]
    }


ROWS = [row(1.0, 20.0), row(0.1, 2.0), row(0.01, 0.5)]


@pytest.fixture(autouse=True)
def needs_matplotlib():
    pytest.importorskip("matplotlib")


def drawn(path):
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_speedup_marks_the_crossover_and_is_the_same_every_time(tmp_path):
    both = [*ROWS, *(r | {"work": "forward+backward"} for r in ROWS)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        charts.speedup(document(*both), tmp_path / name / "a.svg")
    text = drawn(tmp_path / "one" / "a.svg")
    for word in ("spmm", "sparselab", "crossover 0.5", "forward+backward", "c $1$", "medians of 3"):
        assert word in text
    assert "one-read" not in text
    assert (tmp_path / "one" / "a.svg").read_bytes() == (tmp_path / "two" / "a.svg").read_bytes()


def test_no_crossover_is_claimed_where_none_was_measured(tmp_path):
    charts.speedup(document(*ROWS[1:]), tmp_path / "a.svg")
    assert "crossover" not in drawn(tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([], None),
        ([(0.1, 2.0)], None),
        ([(0.1, 2.0), (0.5, 1.5)], None),
        ([(0.1, 0.5), (0.5, 0.2)], None),
        ([(0.4, 0.25), (0.1, 4.0)], 0.2),
        ([(0.1, 1.0), (0.2, 0.5)], 0.1),
        ([(0.1, 4.0), (0.4, 0.25), (0.5, 2.0), (0.8, 0.5)], 0.2),
    ],
)
def test_crossover(points, found):
    assert charts.crossover(points) == (found if found is None else pytest.approx(found))


def test_roofline_shows_the_peaks_of_the_run(tmp_path):
    charts.roofline(document(*ROWS), tmp_path / "r.svg")
    text = drawn(tmp_path / "r.svg")
    for word in ("90 GFLOP/s", "L2 80 GB/s", "L3 60 GB/s", "memory 15 GB/s", "spmm", "useful GFLOP/s"):
        assert word in text


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    path = tmp_path / "a.svg"
    without = [{**r, "us": {"spmm": {"median": 1.0}}} for r in ROWS]
    for draw, content, says in (
        (charts.speedup, document(*without), "no row holds the baseline dense-masked"),
        (
            charts.speedup,
            document(*(row(0.1, 1.0, shape=[n, 1, 1]) for n in range(1, 9))),
            "at most 6 panels",
        ),
        (charts.roofline, document(row(0.1, 1.0, flops=0)), "needs products"),
        (charts.roofline, document(*ROWS) | {"ceilings": []}, "measure again with --roofline"),
        (charts.roofline, document(row(0.1, 1.0, threads=2)), "no ceilings for 2 threads"),
    ):
        with pytest.raises(ArgumentError, match=says):
            draw(content, path)
    assert not path.exists()


def test_a_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LotterykitError, match=r"pip install 'lotterykit\[plot\]'"):
        charts.speedup(document(*ROWS), tmp_path / "a.svg")
