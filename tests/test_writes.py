"""What we write appears whole or not at all: temporary file, fsync, rename. Read from the syntax trees."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from lotterykit.experiments.export import whole_file
from lotterykit.mask import write_atomically

ROOT = Path(__file__).parent.parent
# (file, function) that may open a file to write: it renames what it wrote
WRITERS = {
    ("lotterykit/mask.py", "write_atomically"),
    ("lotterykit/experiments/export.py", "whole_file"),
    ("lotterykit/reports/page.py", "_write"),
}
DRAFTS = {("lotterykit/experiments/backup.py", "draft.touch")}  # SQLite fills and syncs it
SAVERS = {"save_file", "write_text", "write_bytes", "to_csv", "savez", "savetxt", "savefig", "touch"}


def writes(source: str) -> list[tuple[str, str]]:
    """(function, call) of each call in `source` that writes to a file by its name."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            modes = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
            texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
            opens = name in ("open", "fdopen") and any(
                set(t) <= set("rwaxbt+") and set(t) & set("wax+") for t in texts
            )
            drawn_in_memory = name == "savefig" and ast.unparse(node.args[0]) == "out"
            if (
                opens
                or (name in SAVERS and not drawn_in_memory)
                or called in ("torch.save", "numpy.save", "np.save")
            ):
                found.append((function.name, called))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "lotterykit").rglob("*.py")), ids=lambda p: p.name)
def test_files_are_written_whole(path):
    name = path.relative_to(ROOT).as_posix()
    found = writes(path.read_text())
    assert [w for w in found if (name, w[0]) not in WRITERS and (name, w[1]) not in DRAFTS] == []


@pytest.mark.parametrize(("file", "function"), sorted(WRITERS))
def test_what_writes_syncs_and_renames(file, function):
    tree = ast.parse((ROOT / file).read_text())
    body = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    lines = {ast.unparse(n.func): n.lineno for n in ast.walk(body) if isinstance(n, ast.Call)}
    assert lines["os.fsync"] < lines["os.replace"]


@pytest.mark.parametrize(
    "call",
    ["open(p, 'w')", "p.open('wb')", "open(p, mode='a')", "p.write_text('x')", "torch.save(x, p)",
     "safetensors.torch.save_file(x, p)", "figure.savefig(p)"],
)  # fmt: skip
def test_a_write_is_seen(call):
    assert len(writes(f"def f(p):\n    {call}")) == 1


@pytest.mark.parametrize("call", ["open(p)", "p.open('rb')", "figure.savefig(out, format='svg')"])
def test_a_read_is_none(call):
    assert writes(f"def f(p):\n    {call}") == []


def test_a_failure_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    with pytest.raises(Exception, match="No space left"), whole_file(path) as out:
        out.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
