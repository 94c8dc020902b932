"""Figures: valid SVG for ordinary and odd rows, one look per method."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import pytest
import synthetic

pytest.importorskip("matplotlib")

from lotterykit.reports import heat, plots
from lotterykit.reports.groups import groups
from lotterykit.reports.ink import STYLES, power, style
from lotterykit.reports.points import Series


def _texts(svg):
    return "\n".join(t for t in ElementTree.fromstring(svg).itertext() if t.strip())


def _draw(rows, figure):
    (group,) = groups(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if figure == "layers":
            return heat.layer_svg(group)
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


def _axes(rows, monkeypatch, overlay=None):
    """The axes of the metric figure."""
    drawn = []
    monkeypatch.setattr(plots, "svg_text", lambda figure, slug, marks: drawn.append(figure) or "")
    plots.metric_svg(groups(rows, overlay)[0], ["snip", "random"])
    return drawn[0].axes


def _stars(ax):
    return [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "*"]


def test_the_truth_is_a_star_at_its_density_and_mean(monkeypatch):
    rows = synthetic.at_gain_0(synthetic.rows(("relu",), ("snip",), ("truth", 0.1)))
    own = [r["metrics"] for r in rows if r["spec"]["method"] == "oracle"]
    axes = _axes(rows, monkeypatch)
    quantities = [("before", "mse_planted_scale"), ("after", "mse"),
                  ("before", "mse_scaled"), ("after", "mse_scaled")]  # fmt: skip
    for ax, (when, name) in zip(axes, quantities, strict=True):
        ((x, y),) = _stars(ax)
        assert x == pytest.approx(rows[0]["truth_density"])
        assert y == pytest.approx(sum(m[when][name] for m in own) / 2)


def test_hollow_markers_lie_above_solid_ones_and_are_larger(monkeypatch):
    rows = synthetic.rows(("circle",), ("random", "snip"), (0.01, 0.1))
    marks = [line for ax in _axes(rows, monkeypatch) for line in ax.lines if line.get_marker() in ("X", "s")]
    hollow = [m for m in marks if m.get_markerfacecolor() == "none" and len(m.get_xdata())]
    solid = [m for m in marks if m.get_markerfacecolor() != "none" and len(m.get_xdata())]
    assert len(hollow) == len(solid) == 4  # 2 methods, before and after training
    assert min(m.get_zorder() for m in hollow) > max(m.get_zorder() for m in solid)
    assert min(m.get_markersize() for m in hollow) > max(m.get_markersize() for m in solid)


def test_an_overlay_is_drawn_as_line_styles(monkeypatch):
    rows = [r for n in (0.0, 0.1) for r in synthetic.rows(("circle",), ("snip",), (0.1, 0.5), noise=n)]
    for ax in _axes(rows, monkeypatch, "noise"):
        lines = [line for line in ax.lines if line.get_color() == STYLES["snip"][0]]
        styles = {str(line._unscaled_dash_pattern) for line in lines if line.get_linestyle() != "None"}
        assert len(styles) == 2
        assert len(_stars(ax)) == 2  # the truth depends on the noise
    monkeypatch.undo()
    (group,) = groups(rows, "noise")
    text = _texts(plots.metric_svg(group, ["snip"]))
    for word in ("noise 0", "noise 0.1", "ground truth", "snip"):
        assert word in text.splitlines()


def test_methods_differ_and_keep_their_look():
    series = [Series(m, 1, False, ()) for m in (*STYLES, "mine", "yours")]
    looks = [style(s, ["mine", "yours"]) for s in series]
    assert len({k["color"] for k in looks}) == len(series)
    assert len({k["marker"] for k in looks}) == len(series)
    again = style(Series("snip", 100, True, ()), [])
    assert again["color"] == STYLES["snip"][0]
    assert again["linestyle"] != looks[2]["linestyle"]


def _luminance(color):
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_white():
    """WCAG 2.1, 1.4.11: graphics have a contrast of 3 to 1 to what is beside them."""
    looks = [style(Series(m, 1, False, ()), ["a", "b", "c", "d"]) for m in (*STYLES, "a", "b", "c", "d")]
    faint = {k["color"]: 1.05 / (_luminance(k["color"]) + 0.05) for k in looks}
    assert {color for color, contrast in faint.items() if contrast < 3} == set()


def test_powers_of_ten_are_plain_text():
    assert [power(y) for y in (1e-3, 1.0, 1e12, 0.0)] == ["10⁻³", "10⁰", "10¹²", ""]
