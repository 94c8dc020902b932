"""One report for all tests of this folder: drawing is the slow part."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # synthetic.py stands beside the tests

import synthetic


@pytest.fixture(scope="session")
def rows():
    """Two tasks with collapse and nulls, a multi-shot group with one seed and no oracle of its own."""
    alone = synthetic.rows(("circle",), ("snip", "synflow"), ("truth", 0.1), seeds=1, pipeline="multi-shot")
    return synthetic.rows() + [r for r in alone if r["spec"]["method"] != "oracle"]


@pytest.fixture(scope="session")
def report(rows, tmp_path_factory):
    """The folder of the written report."""
    pytest.importorskip("matplotlib")
    from lotterykit.reports import write_report

    out = tmp_path_factory.mktemp("report")
    assert write_report(rows, out, title="A <test> & its title") == out / "index.html"
    return out
