"""Grouping of rows: what is one figure, one line, one point, and whose truth it is."""

from __future__ import annotations

import math

import pytest
import synthetic

from lotterykit.errors import ArgumentError
from lotterykit.reports.groups import groups, stat


def test_one_group_per_setting_and_one_series_per_method():
    rows = synthetic.rows(("helix", "circle"))
    rows += synthetic.rows(("circle",), ("snip",), (0.1,), gain=0.0)
    rows += synthetic.rows(("circle",), ("snip",), (0.1,), pipeline="multi-shot")
    found = groups(rows)
    told = [(g.task, g.pipeline, g.conditions["gain"]) for g in found]
    assert told == [
        ("circle", "single-shot", 0.0),
        ("circle", "single-shot", 1.0),
        ("circle", "multi-shot", 1.0),
        ("helix", "single-shot", 1.0),
    ]
    assert len({g.slug for g in found}) == len(found)
    assert [s.label for s in found[1].series] == ["random", "magnitude", "snip", "grasp", "synflow-100"]
    assert sum(len(g.rows) + len(g.truth) for g in found) == len(rows)


def test_rounds_and_inversion_are_series_of_the_same_figure():
    rows = synthetic.rows(("circle",), ("snip",), (0.1,)) + synthetic.rows(
        ("circle",), ("snip",), (0.1,), invert=True
    )
    rows += [synthetic.row("circle", "snip", 0.1, 0, rounds=100)]
    (group,) = groups([r for r in rows if r["spec"]["method"] != "oracle"])
    assert [s.label for s in group.series] == ["snip", "snip (inverted)", "snip-100"]
    assert group.truth == ()


def test_settings_of_the_other_pipeline_do_not_split_single_shot():
    rows = [synthetic.row("relu", "snip", 0.1, 0, shots=10), synthetic.row("relu", "snip", 0.1, 1, shots=5)]
    assert len(groups(rows)) == 1
    shots = [r | {"spec": r["spec"] | {"pipeline": "multi-shot"}} for r in rows]
    assert len(groups(shots)) == 2


def test_a_group_borrows_the_truth_of_the_same_planting_only():
    local = synthetic.rows(("circle",), ("snip",), (0.1,), scope="local")
    local = [r for r in local if r["spec"]["method"] != "oracle"]
    shots = [r | {"spec": r["spec"] | {"pipeline": "multi-shot", "scope": "global"}} for r in local]
    oracle = synthetic.row("circle", "oracle", "truth", 0)
    found = {(g.pipeline, g.conditions["scope"]): g for g in groups([*local, *shots, oracle])}
    assert found.keys() == {("single-shot", "local"), ("multi-shot", "global")}
    assert found["single-shot", "local"].truth == (oracle,)
    assert found["single-shot", "local"].truth_note == ""
    assert "other pipeline" in found["multi-shot", "global"].truth_note
    other = synthetic.row("circle", "oracle", "truth", 0, gain=0.5)
    apart = groups([*local, other])
    assert [len(g.truth) for g in apart] == [1, 0]
    assert not apart[0].series


def test_stat_leaves_out_what_is_missing():
    s = stat([1.0, None, 3.0, math.inf, math.nan])
    assert (s.mean, s.low, s.high, s.n, s.total) == (2.0, 1.0, 3.0, 2, 5)
    assert math.isnan(stat([None]).mean)


@pytest.mark.parametrize("bad", [[], [{}], [{"spec": {}}], ["row"], [None]])
def test_rows_that_are_none_are_refused(bad):
    with pytest.raises(ArgumentError) as error:
        groups(bad)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named():
    row = synthetic.row("circle", "snip", 0.1, 0)
    del row["recovery"]
    with pytest.raises(ArgumentError, match="recovery missing"):
        groups([row])
