"""docs/tutorial.md does what it says: all its blocks, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lotterykit.cli import invoke

pytest.importorskip("sybil")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"


def run_commands(example: Example) -> None:
    """The lines of a sh block that call lotterykit; the installation is done already."""
    for line in str(example.parsed).splitlines():
        program, *words = shlex.split(line)
        assert program in ("pip", "lotterykit"), line
        if program == "lotterykit":
            assert invoke(words) == 0, line


def parsed(path: Path) -> Document:
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="sh", evaluator=run_commands)]
    return Sybil(parsers=parsers, path=str(path.parent)).parse(path)


def test_the_tutorial_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = list(parsed(TUTORIAL).examples())
    for example in examples:
        example.evaluate()
    prompts_and_blocks = re.findall(
        r"^(?:>>> |```sh\n|```python\n(?!>>>))", TUTORIAL.read_text(), re.MULTILINE
    )
    assert len(examples) == len(prompts_and_blocks)  # none was passed over
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("runs.sqlite-")) == [
        "masks.safetensors", "report", "runs.sqlite", "ticket.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "block", ["```python\n>>> 1 + 1\n3\n```\n", "```python\n1 / 0\n```\n", "```sh\nlotterykit no-such\n```\n"]
)
def test_a_block_that_is_wrong_is_seen(block, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(block)
    (example,) = parsed(path).examples()
    with pytest.raises((AssertionError, ZeroDivisionError)):
        example.evaluate()
