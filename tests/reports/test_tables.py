"""CSV and text tables equal numbers recomputed from the rows."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
import synthetic

from lotterykit.errors import ArgumentError
from lotterykit.reports import summary_rows, summary_table, tables
from lotterykit.reports.groups import groups
from lotterykit.reports.points import Point


def _read(text):
    return list(csv.DictReader(io.StringIO(text)))


def _cell(rows, task, method, asked):
    return [
        r
        for r in rows
        if r["spec"]["task"] == task
        and r["spec"]["method"] == method
        and str(r["spec"]["density"]) == str(asked)
        and r["spec"]["pipeline"] == "single-shot"
    ]


def _method(label):
    return "oracle" if label == "ground truth" else label.removesuffix("-100")


@pytest.mark.parametrize("task", ["circle", "helix"])
def test_metric_csv_is_mean_min_max_of_the_finite_values(rows, task):
    group = next(g for g in groups(rows) if g.task == task and g.pipeline == "single-shot")
    lines = _read(tables.metric_csv(group))
    assert len(lines) == 2 * len(tables.metric_names(group)) * (5 * 5 + 1)
    for line in lines:
        own = _cell(rows, task, _method(line["method"]), line["asked_density"])
        values = [r["metrics"][line["when"]][line["metric"]] for r in own]
        values = [v for v in values if v is not None]
        assert (int(line["n"]), int(line["finite"])) == (len(own), len(values))
        assert int(line["no_live_path"]) == sum(r["collapse"]["no_live_path"] for r in own)
        assert int(line["empty_layer"]) == sum(bool(r["collapse"]["empty_layers"]) for r in own)
        if not values:
            assert line["mean"] == line["min"] == line["max"] == ""
            continue
        assert math.isclose(float(line["mean"]), sum(values) / len(values), rel_tol=1e-12)
        assert (float(line["min"]), float(line["max"])) == (min(values), max(values))


def test_recovery_csv(rows):
    group = next(g for g in groups(rows) if g.task == "circle")
    for line in _read(tables.recovery_csv(group)):
        own = _cell(rows, "circle", _method(line["method"]), line["asked_density"])
        where = [
            r["recovery"]["live"] if line["quantity"].startswith("live_") else r["recovery"] for r in own
        ]
        values = [w[line["quantity"].removeprefix("live_")] for w in where]
        assert math.isclose(float(line["mean"]), sum(values) / len(values), rel_tol=1e-12)


def test_layer_csv_counts_empty_layers_and_dead_networks(rows):
    group = next(g for g in groups(rows) if g.task == "circle")
    lines = _read(tables.layer_csv(group))
    assert any(int(line["empty"]) for line in lines)
    for line in lines:
        own = _cell(rows, "circle", _method(line["method"]), line["asked_density"])
        kept = [k / total for k, total in (r["kept"][line["parameter"]] for r in own)]
        assert math.isclose(float(line["mean"]), sum(kept) / len(kept), rel_tol=1e-12, abs_tol=1e-15)
        assert int(line["empty"]) == kept.count(0.0)
        assert int(line["layer"]) == int(line["parameter"].split(".")[0]) // 2 + 1
        assert int(line["no_live_path"]) == sum(r["collapse"]["no_live_path"] for r in own)


def test_layers_come_in_network_order():
    row = {"kept": {f"{i}.weight": [1, 2] for i in (10, 2, 0)} | {"0.bias": [1, 1]}}
    assert tables.layer_names([row]) == ["0.weight", "2.weight", "10.weight"]


def test_summary_table(rows):
    text = summary_table(rows)
    assert re.search(r"^circle, single-shot, depth 5, width 100, gain 1 \(2 seeds\)", text, re.M)
    assert "ground truth" in text
    assert "* at least one seed has no live path" in text
    assert max(map(len, text.splitlines())) <= 120
    for heading, table in summary_rows(rows):
        assert len({len(line) for line in table}) == 1, heading
    snip = _cell(rows, "circle", "snip", 0.1)
    mean = sum(r["metrics"]["after"]["accuracy"] for r in snip) / len(snip)
    assert re.search(rf"^  snip .* {mean:.3g} ", text, re.M)


def test_summary_of_a_method_without_the_truths_density():
    text = summary_table(synthetic.rows(("relu",), ("snip",), (0.1,), seeds=1))
    assert "0.1" in text
    assert "(1 seed)" in text


def test_summary_of_nothing():
    with pytest.raises(ArgumentError, match="no rows"):
        summary_table([])


def test_below_gain_1_the_untrained_truth_is_taken_times_its_output_scale():
    rows = synthetic.at_gain_0(synthetic.rows(("relu",), ("snip",), ("truth", 0.1), seeds=2))
    lines = _read(tables.metric_csv(groups(rows)[0]))
    (truth,) = (r for r in lines if r["metric"] == "mse" and r["when"] == "before" and "truth" in r["method"])
    assert truth["method"] == "ground truth times its output scale"
    oracles = [r["metrics"]["before"]["mse_planted_scale"] for r in rows if r["spec"]["method"] == "oracle"]
    assert math.isclose(float(truth["mean"]), sum(oracles) / 2, rel_tol=1e-12)
    snip = [r for r in lines if r["method"] == "snip" and r["when"] == "before" and r["metric"] == "mse"]
    for line in snip:  # methods' outputs are taken as they are
        own = _cell(rows, "relu", "snip", line["asked_density"])
        values = [v for r in own if (v := r["metrics"]["before"]["mse"]) is not None]
        assert math.isclose(float(line["mean"]), sum(values) / len(values), rel_tol=1e-12)
    text = summary_table(rows)
    assert re.search(rf"ground truth .*\| {sum(oracles) / 2:.3g} ", text)
    assert "times its output scale" in text
    assert "output scale" not in summary_table(synthetic.rows(("relu",), ("snip",), ("truth",), seeds=1))


def test_numbers_are_shown_without_exponents_while_they_are_short():
    shown = {22512.0: "22,500", 1234.0: "1,230", 999.6: "1,000", 0.0123: "0.0123", 2e9: "2e+09"}
    assert {v: tables.show(v) for v in shown} == shown
    assert tables.show(None) == tables.show(math.nan) == tables.MISSING


def test_headers_show_the_density_that_was_asked_for():
    rows = synthetic.rows(("circle",), ("snip",), (0.01, 0.1, "truth"), seeds=1)
    for row in rows:
        row["density"] *= 1.012
    header = summary_rows(rows)[0][1][0]
    assert {"0.01", "0.1"} < set(header)
    truth = next(r for r in rows if r["spec"]["density"] == "truth")
    assert tables.show_density(Point("truth", (truth,))) == tables.show(truth["density"])


def test_hiding_names_layers_as_everywhere_and_says_why_a_number_is_missing():
    row = synthetic.row("circle", "oracle", "truth", 0)
    row["hiding"] = {
        "0.weight": {"max_sigma": 22512.0, "median_sigma": 1.0, "auc": None},
        "2.bias": {"max_sigma": None, "median_sigma": None, "auc": 0.5},
    }
    _, first, second = tables.hiding_table(groups([row])[0])
    assert first == ["layer 1, weight (0.weight)", "22,500", "1", "every entry is planted"]
    assert second == ["layer 2, bias (2.bias)", "the mother's are 0", "the mother's are 0", "0.5"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec", []), ("metrics", [1]), ("metrics", {"after": [1]}), ("density", "x"), ("truth_density", {}),
        ("collapse", 1), ("recovery", "x"), ("spec", {"method": 5, "density": 0.1}),
        ("spec", {"method": "snip", "density": [0.1]}),
        ("spec", {"method": "snip", "density": 0.1, "seed": "x"}),
        ("spec", {"method": "snip", "density": 0.1, "rounds": {}}),
    ],
)  # fmt: skip
def test_rows_of_other_types_are_refused(field, value):
    row = synthetic.row("circle", "snip", 0.1, 0) | {field: value}
    with pytest.raises(
        ArgumentError, match=r"row 0 is no result row: .* of another type than a report reads"
    ):
        summary_table([row])
