"""Figures: valid SVG for ordinary and odd rows, one look per method."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import pytest
import synthetic

pytest.importorskip("matplotlib")

from lotterykit.reports import plots
from lotterykit.reports.groups import Series, groups
from lotterykit.reports.ink import STYLES, power, style


def _texts(svg):
    return "\n".join(t for t in ElementTree.fromstring(svg).itertext() if t.strip())


def _draw(rows, figure):
    (group,) = groups(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if figure == "layers":
            return plots.layer_svg(group)
        return {"metric": plots.metric_svg, "recovery": plots.recovery_svg}[figure](group, ["snip", "mine"])


def test_metric_labels_state_axes_truth_and_collapse(report):
    text = _texts((report / "figures" / "circle-single-shot-d5-w100-g1-metric.svg").read_text())
    for word in ("density (kept / total)", "test accuracy", "ground truth", "strong ticket", "weak ticket"):
        assert word in text
    assert "no live path" in text
    text = _texts((report / "figures" / "helix-single-shot-d5-w100-g1-metric.svg").read_text())
    assert "up to scale" in text
    assert "not finite" in text


def test_collapsed_cells_are_counted_on_the_heat_map(report):
    svg = (report / "figures" / "circle-single-shot-d5-w100-g1-layers.svg").read_text()
    assert "\u00d7 2 of 2" in _texts(svg)
    assert "<pattern" in svg  # the hatching


def test_values_that_are_all_equal_missing_or_infinite():
    rows = synthetic.rows(("helix",), ("snip", "mine"), ("truth", 0.1), seeds=2)
    for row in rows:
        value = {"snip": None, "mine": 0.4, "oracle": 0.4}[row["spec"]["method"]]
        row["metrics"] = {w: {"loss": value, "mse": value, "mse_scaled": value} for w in ("before", "after")}
        row["recovery"]["live"] = {"precision": None, "recall": None, "iou": None}
    rows[-1]["metrics"]["before"]["mse"] = float("inf")
    assert "mine" in _texts(_draw(rows, "metric"))
    assert "mine" in _texts(_draw(rows, "recovery"))


def test_one_seed_one_density_no_truth():
    row = synthetic.row("circle", "snip", 0.1, 0)
    for figure in ("metric", "recovery", "layers"):
        assert "snip" in _texts(_draw([row], figure))


def test_methods_differ_and_keep_their_look():
    series = [Series(m, 1, False, ()) for m in (*STYLES, "mine", "yours")]
    looks = [style(s, ["mine", "yours"]) for s in series]
    assert len({k["color"] for k in looks}) == len(series)
    assert len({k["marker"] for k in looks}) == len(series)
    again = style(Series("snip", 100, True, ()), [])
    assert again["color"] == STYLES["snip"][0]
    assert again["linestyle"] != looks[2]["linestyle"]


def test_powers_of_ten_are_plain_text():
    assert [power(y) for y in (1e-3, 1.0, 1e12, 0.0)] == ["10⁻³", "10⁰", "10¹²", ""]
