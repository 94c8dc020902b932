"""Grouping of rows: what is one figure, one line, one point, and whose truth it is."""

from __future__ import annotations

import math

import pytest
import synthetic

from lotterykit.errors import ArgumentError
from lotterykit.reports import captions, words
from lotterykit.reports.groups import groups
from lotterykit.reports.points import stat
from lotterykit.reports.sections import make_sections


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


def test_an_overlay_is_one_group_whose_series_differ_in_it():
    rows = [
        r
        for noise in (0.1, 0.0, 0.01)
        for r in synthetic.rows(("circle",), ("snip", "grasp"), (0.1, "truth"), noise=noise)
    ]
    (group,) = groups(rows, "noise", "figure-14-")
    assert group.values == [0.0, 0.01, 0.1]
    assert group.slug == "figure-14-circle-single-shot-d5-w100-g1"
    assert [s.label for s in group.series] == [
        f"{m}, noise {n}" for m in ("snip", "grasp") for n in ("0", "0.01", "0.1")
    ]
    assert [(v, len(own)) for v, own in group.truths] == [(0.0, 2), (0.01, 2), (0.1, 2)]
    for value, part in zip(group.values, group.parts, strict=True):
        assert part.conditions["noise"] == value
        assert {r["spec"]["noise"] for r in [*part.rows, *part.truth]} == {value}
        assert [s.label for s in part.series] == ["snip", "grasp"]
    assert len({g.slug for g in group.parts}) == 3


def test_the_truth_is_the_same_for_every_reset():
    rows = [
        r
        for reset in ("init", "never")
        for r in synthetic.rows(("circle",), ("snip",), (0.1,), pipeline="multi-shot", reset=reset)
        if reset == "init" or r["spec"]["method"] != "oracle"
    ]
    (group,) = groups(rows, "reset")
    assert group.truths == [(None, group.truth)]
    assert [len(g.truth) for g in group.parts] == [2, 2]


def test_oracles_that_differ_in_rounds_alone_count_once():
    rows = [synthetic.row("circle", m, "truth", 0, rounds=n) for m in ("oracle", "synflow") for n in (1, 100)]
    (group,) = groups(rows)
    assert len(group.truth) == 1


def test_settings_of_an_oracle_are_no_difference_to_show():
    rows = synthetic.rows(("circle",), ("snip",), (0.1,), pipeline="multi-shot", shots=2)
    for row in rows:
        if row["spec"]["method"] == "oracle":
            row["spec"]["shots"] = 10
    (group,) = groups(rows)
    assert group.extra == ()
    assert len(group.truth) == 2


def test_figures_are_sections_with_their_own_rows_only():
    rows = synthetic.rows(("circle",), ("snip",), (0.1,)) + synthetic.rows(("relu",), ("snip",), (0.1,))
    keys = [r["key"] for r in rows if r["spec"]["task"] == "circle"]
    figure = {"name": 9, "title": "Nine", "overlay": None, "keys": keys}
    (nine, ten) = make_sections(rows, [figure, {**figure, "name": "ladder", "keys": []}])
    assert (nine.heading, nine.name, [g.task for g in nine.groups]) == (
        "Figure 9: Nine",
        "Figure 9",
        ["circle"],
    )
    assert len(nine.rows) == len(keys)
    assert ten.groups == ten.rows == ()
    assert (ten.heading, ten.name) == ("Ladder: Nine", "Ladder")
    with pytest.raises(ArgumentError, match="no rows"):
        make_sections(rows, [{**figure, "keys": []}])


def test_edge_popup_stands_beside_multi_shot():
    shots = synthetic.rows(("circle",), ("snip",), (0.1, "truth"), pipeline="multi-shot", score_epochs=10)
    popup = {"pipeline": "edge-popup", "score_epochs": 10}
    rows = [*shots, *synthetic.rows(("circle",), ("edge-popup",), (0.1, "truth"), **popup)]
    (group,) = groups(rows)
    assert group.pipeline == "multi-shot"
    assert [s.label for s in group.series] == ["snip", "edge-popup"]
    assert len(group.truth) == 2
    assert "edge-popup instead: 10 epochs" in captions.metric_caption(group)
    longer = synthetic.rows(("circle",), ("edge-popup",), (0.1,), **{**popup, "score_epochs": 20})
    assert len(groups([*rows, *longer])) == 3  # two lines of one name would be no figure
    (alone,) = groups(rows[len(shots) :])
    assert alone.pipeline == "edge-popup"


def test_unplanted_mothers_borrow_the_truth_of_their_twins():
    planted = synthetic.rows(("circle",), ("snip",), (0.1, "truth"), planted=True)
    bare = [r for r in synthetic.rows(("circle",), ("snip",), (0.1, "truth"), planted=False)
            if r["spec"]["method"] != "oracle"]  # fmt: skip
    found = {g.unplanted: g for g in groups(planted + bare)}
    assert len(found[True].truth) == 2
    assert "Nothing is planted" in found[True].truth_note
    assert "unplanted" in found[True].title
    assert "gain" not in found[True].title
    assert "unplanted" in found[True].slug
    assert "planted" not in found[False].title


def test_the_ladder_is_no_search():
    rungs = ("random", "oracle-densities", "oracle-less-10")
    (group,) = groups(synthetic.rows(("circle",), rungs, ("truth",)))
    assert group.ladder
    assert [s.label for s in group.series] == list(rungs)
    assert [s.label for s in group.searched] == ["random"]
    assert "oracle-less-10" in " ".join(text for _, text in words.notes(group))
    assert "oracle-less" not in words.lead([group])
    (mixed,) = groups(synthetic.rows(("circle",), rungs, ("truth", 0.1)))
    assert not mixed.ladder


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
