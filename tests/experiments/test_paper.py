"""Tests of `lotterykit.experiments.paper`."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lotterykit.errors import ArgumentError
from lotterykit.experiments.paper import CONTROLS, FIGURES, STUDY, cells, quick, reduced, sections
from lotterykit.experiments.spec import EDGE_POPUP, LADDER, METHODS
from lotterykit.experiments.sweep import Sweep
from lotterykit.reports import write_report
from lotterykit.reports.groups import groups


def test_quick_is_as_promised():
    found = quick()
    single = [c for c in found if c.pipeline == "single-shot" and c.method != "oracle"]
    multi = [c for c in found if c.pipeline == "multi-shot" and c.method != "oracle"]
    assert len(single) == 3 * 5 * 5 * 2
    assert len(multi) == 5 * 5
    assert {c.task for c in multi} == {"circle"}
    assert len([c for c in found if c.method == "oracle"]) == 3 * 2 + 1
    assert {c.density for c in single} == {0.01, 0.1, 0.5, 1.0, "truth"}


def test_figure_3_is_the_papers_at_several_gains():
    found = Counter((c.gain, c.method == "oracle") for c in FIGURES[3].cells())
    for gain, tasks in ((0.0, 3), (0.25, 2), (0.5, 2), (0.75, 2), (1.0, 3)):
        assert found[gain, False] == tasks * 5 * 5 * 25
        assert found[gain, True] == tasks * 25


def test_figure_4_shows_edge_popup_beside_the_others():
    found = Counter((c.pipeline, c.method) for c in FIGURES[4].cells())
    for method in EDGE_POPUP:
        assert found.pop(("edge-popup", method)) == 3 * 5 * 2 * 10
    assert {pipeline for pipeline, _ in found} == {"multi-shot"}


def test_controls():
    found = CONTROLS["unplanted"].cells()
    planted = {c.method for c in found if c.planted}
    assert planted == {"oracle"}
    assert len([c for c in found if not c.planted]) == 3 * 5 * 5 * 10
    assert {c.gain for c in found} == {1.0}
    assert set(c for c in found if c.planted) <= set(FIGURES[3].cells())
    rungs = Counter((c.method, c.density) for c in CONTROLS["ladder"].cells())
    assert rungs == {(m, "truth"): 3 * 2 * 25 for m in ("random", *LADDER, "oracle")}


def test_figures_have_the_papers_settings():
    def values(number, name):
        return {getattr(c, name) for c in FIGURES[number].cells(seeds=1) if c.method != "oracle"}

    assert {n: len(set(c.seed for c in FIGURES[n].cells())) for n in FIGURES} == {
        3: 25, 4: 10, 7: 10, 9: 25, 10: 25, 11: 25, 12: 10, 13: 10, 14: 10, 15: 10,
    }  # fmt: skip
    assert values(7, "reset") == {"init", "never", "not-last"}
    assert [values(n, "depth") for n in (9, 10, 11, 12, 13, 14)] == [{3}, {5}, {10}, {6}, {6}, {6}]
    assert values(12, "width") == {1000}
    assert values(13, "rounds") == {1, 100}
    assert values(13, "method") == {"synflow"}
    assert values(14, "noise") == {0.0, 0.001, 0.01, 0.1}
    assert values(15, "scope") == {"local"}
    assert [values(n, "pipeline") for n in (7, 14, 15)] == [{"multi-shot"}] * 3


def test_cells_of_all_figures_are_distinct_and_shared_ones_run_once():
    everything = cells()
    assert len(everything) == len({c.key() for c in everything})
    assert len(everything) < sum(len(f.cells()) for f in STUDY.values())  # figure 10 lies in figure 3


def test_sections_name_each_figures_rows():
    found = sections([14, 3, 14])
    assert [(s["name"], s["title"], s["overlay"]) for s in found] == [
        (14, FIGURES[14].title, "noise"),
        (3, FIGURES[3].title, None),
    ]
    for section in found:
        assert section["keys"] == [c.key() for c in FIGURES[section["name"]].cells()]
    whole = sections()
    assert [s["name"] for s in whole] == list(STUDY)
    assert {k for s in whole for k in s["keys"]} == {c.key() for c in cells()}


@pytest.mark.parametrize("name", STUDY)
def test_an_overlay_is_a_field_the_figure_varies(name):
    figure = STUDY[name]
    assert figure.overlay == {7: "reset", 13: "rounds", 14: "noise"}.get(name)
    assert figure.overlay is None or len(figure.grids[0][figure.overlay]) > 1


def test_unknown_figure():
    for function in (cells, sections):
        with pytest.raises(ArgumentError, match="unknown figure '8'"):
            function([8])


@pytest.mark.parametrize("name", STUDY)
def test_reduced_figures_keep_every_kind_of_cell(name):
    small, whole = reduced(STUDY[name]), STUDY[name].cells(seeds=1)
    kept = ("task", "gain", "pipeline", "depth", "scope", "reset", "noise", "planted")
    for field in kept:
        assert {getattr(c, field) for c in small} == {getattr(c, field) for c in whole}
    assert {c.method for c in small} <= {*METHODS, *EDGE_POPUP, *LADDER, "oracle"}
    assert len(small) < len(whole)


@pytest.mark.parametrize("number", STUDY)
def test_each_figure_runs_at_a_reduced_size_through_to_its_page(number, tmp_path):
    pytest.importorskip("matplotlib")
    found = reduced(STUDY[number])
    result = Sweep.of(found).run("inline", store=tmp_path / "runs.sqlite")
    assert result.failed == []
    rows = result.rows
    assert [row["key"] for row in rows] == [c.key() for c in found]
    for row in rows:
        task, after = row["spec"]["task"], row["metrics"]["after"]
        assert math.isfinite(after["accuracy" if task == "circle" else "mse"])
        assert row["recovery"]["recall"] == 1 or row["spec"]["method"] != "oracle"
    for group in groups(rows):
        assert len(group.truth) == 1, group.title  # borrowed where the search's settings made no other
    # Drawing is slow: every gain of the figure, each with another task; the other pairs look alike.
    tasks, gains = (list(dict.fromkeys(getattr(c, name) for c in found)) for name in ("task", "gain"))
    first = list(STUDY).index(number)
    shown = {(tasks[(first + i) % len(tasks)], gain) for i, gain in enumerate(gains[:3])}
    drawn = [row for row in rows if (row["spec"]["task"], row["spec"]["gain"]) in shown]
    (section,) = sections([number])
    page = write_report(drawn, tmp_path / "out", figures=[{**section, "keys": [row["key"] for row in drawn]}])
    assert STUDY[number].title in page.read_text()
    assert list((page.parent / "figures").glob("*.svg"))
