"""The drawn ticket: which one, what is in it, and the cases with nothing to draw."""

from __future__ import annotations

import csv
import io
from xml.etree import ElementTree

import pytest
import synthetic

from lotterykit.reports import captions, tickets
from lotterykit.reports.groups import groups


def _texts(svg):
    return "\n".join(t for t in ElementTree.fromstring(svg).itertext() if t.strip())


def test_the_best_live_recovery_at_the_truths_density_is_picked(rows):
    group = next(g for g in groups(rows) if g.task == "circle" and g.truth)
    pair = tickets.pick(group)
    assert pair.planted["spec"]["method"] == "oracle"
    assert pair.planted["spec"]["seed"] == pair.found["spec"]["seed"] == 0
    rivals = [r for r in group.rows if r["spec"]["density"] == "truth" and r["spec"]["seed"] == 0]
    best = max(rivals, key=lambda r: (r["recovery"]["live"]["iou"], r["recovery"]["recall"]))
    assert pair.found is best


def test_without_the_truths_density_the_nearest_is_picked():
    (group,) = groups(synthetic.rows(("circle",), ("synflow",), (0.01, 0.1, 0.5), seeds=1))
    assert tickets.pick(group).found["spec"]["density"] == 0.01


def test_tickets_without_a_live_path_are_picked_last():
    rows = synthetic.rows(("relu",), ("magnitude", "synflow"), ("truth", 0.01, 0.1), seeds=1)
    nothing = {"widths": rows[0]["edges"]["widths"], "edges": [], "biases": []}
    for row in rows:
        asked, method = row["spec"]["density"], row["spec"]["method"]
        if method != "oracle" and (asked == "truth" or method == "magnitude"):
            row["edges"], row["collapse"]["no_live_path"] = nothing, True
        elif asked == 0.01:
            row["edges"] = rows[0]["edges"]
    (group,) = groups(rows)
    pair = tickets.pick(group)
    assert (pair.found["spec"]["method"], pair.found["spec"]["density"]) == ("synflow", 0.01)
    assert "the one with the best live IoU" in captions.ticket_caption(pair)
    dead = [r for r in rows if r["spec"]["method"] in ("oracle", "magnitude")]
    assert "no method's ticket" in captions.ticket_caption(tickets.pick(groups(dead)[0]))


def test_csv_holds_every_edge_once(rows):
    group = next(g for g in groups(rows) if g.task == "helix")
    pair = tickets.pick(group)
    lines = list(csv.DictReader(io.StringIO(tickets.ticket_csv(pair))))
    planted = {tuple(e[:3]) for e in pair.planted["edges"]["edges"]}
    found = {tuple(e[:3]): e for e in pair.found["edges"]["edges"]}
    assert len(lines) == len(planted) + len(found)
    for line in lines:
        edge = (int(line["layer"]) - 1, int(line["out"]), int(line["in"]))
        assert line["planted"] == str(edge in planted)
        if line["panel"] == "found":
            assert [float(line["weight_before"]), float(line["weight_after"])] == found[edge][3:]


def test_shared_neurons_stand_at_one_place_and_no_two_share_one(rows):
    pair = tickets.pick(next(g for g in groups(rows) if g.task == "helix"))
    drawn = [tickets.ticket(pair.planted), tickets.ticket(pair.found)]
    places = tickets._places(drawn)
    assert places.keys() >= drawn[0].neurons | drawn[1].neurons
    assert len({(x, round(y, 9)) for x, y in places.values()}) == len(places)
    assert all(x == layer for (layer, _), (x, _) in places.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": None}, "too many weights to draw"),
        ({"edges": {"widths": [2, 9, 9, 9, 4], "edges": [], "biases": []}}, "no live path"),
        ({}, "snip, untrained"),
    ],
)
def test_nothing_to_draw_is_said(change, words):
    pytest.importorskip("matplotlib")
    rows = synthetic.rows(("circle",), ("snip",), (0.01,), seeds=1)
    for row in rows:
        if row["spec"]["method"] == "snip":
            row["collapse"]["no_live_path"] = words.startswith("no")
            row["edges"] = rows[0]["edges"]
            row.update(change)
    pair = tickets.pick(groups(rows)[0])
    assert words in _texts(tickets.ticket_svg(pair, "t"))


def test_an_oracle_alone_is_drawn():
    pytest.importorskip("matplotlib")
    (group,) = groups([synthetic.row("relu", "oracle", "truth", 3)])
    pair = tickets.pick(group)
    assert (pair.found, pair.seed) == (None, 3)
    assert "not in these results" in _texts(tickets.ticket_svg(pair, "t"))
