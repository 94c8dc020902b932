"""The library logs and never prints; only what a command line calls to speak prints."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lotterykit import Sweep
from lotterykit.cli import invoke
from lotterykit.ops import dispatch

ROOT = Path(__file__).parent.parent
# The files that are there to speak: the command line, and what its commands print.
SPEAKS = re.compile(r"cli|command|display|tables|\w+_(command|display)")
SOURCES = sorted([*(ROOT / "lotterykit").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def spoken(source: str) -> list[str]:
    """Every use of `print`, `warnings.warn` and the standard streams in `source`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == "print":
            found.append(f"line {node.lineno}: print")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__", "warnings.warn"):
                found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints(path):
    if not (SPEAKS.fullmatch(path.stem) and path.is_relative_to(ROOT / "lotterykit")):
        assert spoken(path.read_text()) == []


@pytest.mark.parametrize(
    "source", ["print(1)", "Timer(1, print)", "import sys\nsys.stderr.write('x')", "warnings.warn('x')"]
)
def test_speaking_is_seen(source):
    assert spoken(source)


FAILING = """
import sys
sys.path.insert(0, sys.argv[1])
import lotterykit as lk
{configured}
spec, grid = {{"task": "circle", "method": "snip"}}, {{"density": [0.1]}}
cells = lk.Sweep(spec, grid, 4, runner="fake_runner:raise_on_seed_3")
result = cells.run("inline", store=sys.argv[2])
assert len(result.failed) == 2
"""


@pytest.mark.parametrize(
    ("configured", "said"),
    [
        ("", ()),
        ("import logging; logging.basicConfig()", ("WARNING:lotterykit", "ERROR:lotterykit")),
        (
            "import logging; logging.basicConfig(); logging.getLogger('lotterykit').setLevel('ERROR')",
            ("ERROR:lotterykit",),
        ),
    ],
    ids=["silent", "heard", "errors"],
)
def test_a_sweep_that_fails_is_silent_unless_logging_is_configured(configured, said, tmp_path):
    code = FAILING.format(configured=configured)
    words = [sys.executable, "-c", code, str(ROOT / "tests" / "experiments"), str(tmp_path / "runs.sqlite")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert {":".join(line.split(":")[:2]).partition(".")[0] for line in done.stderr.splitlines()} == set(said)


def test_the_command_line_says_warnings_on_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = ["--task", "circle", "--method", "snip", "--density", ".1", "--seeds", "3,4", "--no-oracle"]
    runner = ["--runner", "fake_runner:raise_on_seed_3", "--executor", "inline"]
    handlers = list(logging.getLogger("lotterykit").handlers)
    assert invoke(["sweep", "run", *grid, *runner]) == 1
    assert logging.getLogger("lotterykit").handlers == handlers
    err = capsys.readouterr().err
    assert "lotterykit: a cell is tried again: RuntimeError: seed 3 is bad\n" in err
    assert len(re.findall(r"failed", err)) == 2  # the cell and how many: the log's own word is not repeated


def test_what_is_logged_says_what_happened(caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.INFO, "lotterykit")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "experiments"))
    sweep = Sweep(
        {"task": "circle", "method": "snip"}, {"density": [0.1]}, 4, runner="fake_runner:raise_on_seed_3"
    )
    sweep.run("inline", store=tmp_path / "runs.sqlite")
    assert f"{tmp_path / 'runs.sqlite'}: 8 of 8 cells are to be run" in caplog.messages
    assert any("tried again, one by one: RuntimeError: seed 3 is bad" in text for text in caplog.messages)
    failed = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(failed) == 2
    assert "failed after 3 tries: RuntimeError: seed 3 is bad" in failed[0].getMessage()


def test_a_backend_that_is_missing_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda backend: "it is not here")
    caplog.set_level(logging.INFO, "lotterykit")
    dispatch.missing.cache_clear()
    try:
        assert [dispatch.missing("cuda") for _ in range(3)] == ["it is not here"] * 3
    finally:
        dispatch.missing.cache_clear()
    assert caplog.messages == ["backend cuda: it is not here"]
