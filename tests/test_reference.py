"""The API reference: every public name is on a page, with a docstring that somebody wrote."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import lotterykit as lk

pytest.importorskip("pdoc")
SCRIPT = Path(__file__).parent.parent / "docs" / "reference.py"

# What users may rely on, by the names that they write.
PROMISED = [
    "MaskedLinear", "MaskedConv2d", "convert_", "revert_", "Masks", "scores", "prune_", "Pruner",
    "mask_optimizer_", "targets.relu", "targets.circle", "targets.helix", "targets.TargetNetwork",
    "nn.mlp", "plant", "Planted", "recovery", "Recovery", "data.circle", "data.relu", "data.helix",
    "find_ticket", "Ticket", "train_replicas", "RunSpec", "RunResult", "Sweep", "ops.masked_linear",
    "ops.threshold_linear", "ops.spmm", "ops.sddmm", "ops.masked_conv2d", "ops.topk_mask",
    "ops.synflow_scores", "ops.match_neurons", "backends", "use_backend", "explain",
    "LotterykitError",
]  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Written by a process of its own, as `make docs` does; it fails where a public name is left out."""
    folder = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == (f"{folder / 'index.html'}\n", 0), done.stdout + done.stderr
    assert done.stderr == ""
    return folder


def test_the_pages_need_no_network(pages):
    for page in pages.rglob("*.html"):
        html = page.read_text()
        assert 'src="http' not in html
        assert "@import" not in html
        assert 'rel="stylesheet"' not in html


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_is_documented(name, reference, pages):
    room, _, attribute = name.rpartition(".")
    module = reference.PAGES[f"lotterykit.{room}" if room else "lotterykit"]
    value = getattr(module, attribute)
    page = (pages / f"{module.__name__.replace('.', '/')}.html").read_text()
    _, _, section = page.partition(f'<section id="{attribute}">')
    assert 'class="docstring"' in section.partition("</section>")[0]
    assert reference.written(value)


def test_what_is_missing_is_told(reference, pages, tmp_path, monkeypatch):
    @dataclass
    class Undocumented:
        x: int

    monkeypatch.setattr(lk, "Undocumented", Undocumented, raising=False)
    monkeypatch.setattr(lk, "__all__", [*lk.__all__, "Undocumented"])
    assert reference.faults(pages) == [
        "lotterykit.Undocumented: not on the page",
        "lotterykit.Undocumented: no docstring",
    ]
    assert "lotterykit.ops: no page" in reference.faults(tmp_path)
