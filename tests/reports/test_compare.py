"""Several sweeps in one report: what is compared, side by side and seed by seed."""

from __future__ import annotations

import pytest
import synthetic

from lotterykit.errors import ArgumentError
from lotterykit.reports import compare, write_report
from lotterykit.reports.groups import groups


def _sweeps():
    """The same study with two learning rates; the second knows one density more and one seed less."""
    slow = synthetic.rows(("circle",), ("snip", "random"), ("truth", 0.1), seeds=3, lr=1e-3)
    fast = synthetic.rows(("circle",), ("snip", "random"), ("truth", 0.1, 0.5), seeds=2, lr=1e-2)
    return {"slow": slow, "fast": fast}


def test_what_differs_between_sweeps_is_theirs_and_keeps_no_figures_apart():
    rows, own = compare.join(_sweeps())
    assert own == {"slow": {"lr": 1e-3}, "fast": {"lr": 1e-2}}
    assert all("lr" not in row["spec"] for row in rows)
    (group,) = groups(rows, compare.SWEEP)
    assert compare.compared(group)
    assert group.values == ["slow", "fast"]
    assert [len(part.seeds) for part in group.parts] == [3, 2]


def test_what_varies_within_a_sweep_separates_as_ever():
    sweeps = _sweeps()
    sweeps["slow"] += synthetic.rows(("circle",), ("snip",), (0.1,), seeds=1, lr=5e-3)
    rows, own = compare.join(sweeps)
    assert own == {"slow": {}, "fast": {}}
    assert len(groups(rows, compare.SWEEP)) == 3


def test_differences_are_of_the_same_seeds():
    sweeps = _sweeps()
    rows, _ = compare.join(sweeps)
    (group,) = groups(rows, compare.SWEEP)
    table = compare.difference_table(group)
    assert table["header"] == ["method", "density", "slow", "fast", "fast minus slow"]
    found = {(line[0][0], line[1][0]): line for line in table["lines"]}
    assert len(found) == 4  # density .5 is in one sweep alone

    def after(label, seed):
        return next(
            r["metrics"]["after"]["accuracy"] for r in sweeps[label]
            if (r["spec"]["method"], r["spec"]["density"], r["spec"]["seed"]) == ("snip", 0.1, seed)
        )  # fmt: skip

    mean = sum(after("fast", seed) - after("slow", seed) for seed in (0, 1)) / 2
    text, small = found["snip", "0.1"][4]
    assert float(text) == pytest.approx(mean, rel=1e-2)
    assert small.endswith("2 pairs")


def test_a_sweep_without_rows_is_named():
    with pytest.raises(ArgumentError, match="sweep empty holds no finished cell"):
        compare.join({"full": _sweeps()["slow"], "empty": []})


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    pytest.importorskip("matplotlib")
    sweeps = _sweeps()
    sweeps["relu"] = synthetic.rows(("relu",), ("snip",), (0.1,), seeds=1)
    out = tmp_path_factory.mktemp("comparison")
    return write_report([], out, sweeps=sweeps).read_text(encoding="utf-8"), out


def test_the_page_shows_panels_differences_and_settings(comparison):
    text, out = comparison
    names = {path.stem for path in (out / "figures").glob("*.svg")}
    assert "circle-single-shot-d5-w100-g1-sweeps" in names
    assert "circle-single-shot-d5-w100-g1-metric" not in names
    drawn = (out / "figures" / "circle-single-shot-d5-w100-g1-sweeps.svg").read_text(encoding="utf-8")
    for title in ("fast: before", "slow: before", "fast: after", "slow: after"):
        assert title in drawn
    assert 'data-sweep="slow"' in drawn
    for words in (
        "What differs after training",
        "fast minus slow",
        "learning rate 0.01",
        "Sweeps side by side",
    ):
        assert words in text


def test_more_sweeps_than_columns():
    pytest.importorskip("matplotlib")
    rows, _ = compare.join(
        {str(i): synthetic.rows(("circle",), ("snip",), (0.1,), seeds=1) for i in range(5)}
    )
    (group,) = groups(rows, compare.SWEEP)
    drawn = compare.side_svg(group, ["snip"])
    assert all(f"{i}: {when} training" in drawn for i in range(5) for when in ("before", "after"))


def test_a_comparison_is_the_same_bytes_again(comparison, tmp_path):
    text, _ = comparison
    sweeps = {label: own[::-1] for label, own in _sweeps().items()}
    sweeps["relu"] = synthetic.rows(("relu",), ("snip",), (0.1,), seeds=1)
    assert write_report([], tmp_path, sweeps=sweeps).read_text(encoding="utf-8") == text
