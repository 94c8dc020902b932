"""The table of all results as data: whole, short, and of a bounded size for a large sweep."""

from __future__ import annotations

import json

import pytest
import synthetic

from lotterykit.reports import figures, write_report
from lotterykit.reports.explorer import explorer_json
from lotterykit.reports.sections import make_sections


def _table(rows):
    told = json.loads(explorer_json(make_sections(rows)))
    columns = {}
    for column in told["columns"]:
        words = column.get("words")
        columns[column["name"]] = [words[i] for i in column["at"]] if words else column["values"]
    return told, columns


def test_every_result_is_there_once(rows):
    _, columns = _table(rows)
    assert {len(values) for values in columns.values()} == {len(rows)}
    assert sorted(columns["key"]) == sorted(r["key"][:12] for r in rows)
    told = zip(columns["method"], columns["asked"], columns["seed"], columns["MSE after"], strict=True)
    for row in rows:
        spec, mse = row["spec"], row["metrics"]["after"].get("mse")
        name = {"oracle": "ground truth", "synflow": "synflow-100"}.get(spec["method"], spec["method"])
        if mse is not None:
            assert (name, f"{spec['density']}".removesuffix(".0"), spec["seed"], float(f"{mse:.4g}")) in told
            told = zip(
                columns["method"], columns["asked"], columns["seed"], columns["MSE after"], strict=True
            )


def test_words_cannot_end_the_script_element():
    evil = "</script><script>alert(1)</script>"
    text = explorer_json(make_sections([synthetic.row("circle", evil, 0.1, 0)]))
    assert "<" not in text
    assert json.loads(text)["columns"][1]["words"] == [evil]


def test_a_hundred_thousand_rows_make_a_page_of_bounded_size(tmp_path):
    pytest.importorskip("matplotlib")
    some = [
        synthetic.row("circle", m, 0.1, 0) | {"edges": None} for m in ("snip", "random", "grasp", "magnitude")
    ]
    rows = [row | {"spec": row["spec"] | {"seed": seed}} for row in some for seed in range(25_000)]
    page = write_report(rows, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert len(text) < 12_000_000
    assert text.count("<tr") < 100
    assert text.count("<svg") <= figures.FEW


def test_a_large_sweep_draws_few_figures_and_says_so(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [
        r for gain in (0.5, 0.75, 1.0) for r in synthetic.rows(("circle",), ("snip",), (0.1,), 1, gain=gain)
    ]
    for most, drawn in ((None, 12), (7, 6), (2, 2), (0, 0)):
        text = write_report(rows, tmp_path, most_figures=most).read_text(encoding="utf-8")
        assert text.count("<svg") == drawn
        assert (f"{12 - drawn} figures of this large report are not drawn" in text) is (drawn < 12)
    monkeypatch.setattr(figures, "LARGE", len(rows) - 1)
    assert write_report(rows, tmp_path).read_text(encoding="utf-8").count("<svg") == figures.FEW
