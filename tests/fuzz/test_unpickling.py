"""No unrestricted unpickling: our sources ask for none, and a malicious pickle runs in no reader."""

from __future__ import annotations

import ast
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from damaged import Mutant
from reader import Reader
from readers import READERS

from lotterykit.errors import LotterykitError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "setup.py"] + [
    path
    for folder in ("lotterykit", "kernels", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"load", "loads", "Unpickler"}
YAML = {"load", "load_all", "unsafe_load", "full_load"}


def unrestricted(source: str) -> list[str]:
    """What in `source` could run what a file says, with its line."""
    found = []
    names: dict[str, str] = {}  # what an import calls -> what it is
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                      for a in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        called = ".".join(filter(None, (names.get(first, first), rest)))
        module, _, name = called.rpartition(".")
        given = {k.arg: k.value for k in node.keywords}
        flag = {arg: value.value if isinstance(value, ast.Constant) else None for arg, value in given.items()}
        bad = (
            called in ("eval", "exec", "compile", "builtins.eval", "builtins.exec", "pandas.read_pickle")
            or (module.partition(".")[0] in MODULES and name in LOADERS | {"open"})
            or (module == "yaml" and name in YAML)
            or (called in ("torch.load", "torch.serialization.load") and flag.get("weights_only") is not True)
            or (called == "numpy.load" and flag.get("allow_pickle", False) is not False)
            or (name == "add_safe_globals" or called == "torch.jit.load")
        )
        if bad or (None in given and called in ("torch.load", "numpy.load")):
            found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_our_sources_unpickle_nothing(path):
    assert unrestricted(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import loads\nloads(b)",
        "from pickle import Unpickler as U\nU(f).load()",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, weights_only=safe)",
        "import torch\ntorch.load(f, **options)",
        "from torch import load\nload(f)",
        "import torch\ntorch.serialization.add_safe_globals([f])",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy\nnumpy.load(f, allow_pickle=x)",
        "import joblib\njoblib.load(f)",
        "import shelve\nshelve.open(f)",
        "import marshal\nmarshal.loads(b)",
        "import yaml\nyaml.load(f)",
        "eval(text)",
        "def f():\n    exec(text)",
    ],
)
def test_what_is_looked_for_is_seen(source):
    assert len(unrestricted(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f)",
        "import json\njson.loads(b)",
        "model.eval()",
        "from lotterykit.ops import dispatch\ndispatch.load(route)",
        "import re\nre.compile(x)",
    ],
)
def test_what_is_harmless_is_let_be(source):
    assert unrestricted(source) == []


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.marker,)


def payloads(marker: Path) -> dict[str, bytes]:
    """Files that make the folder `marker` where they are unpickled."""
    evil = Malicious(marker)
    found = {f"pickle {protocol}": pickle.dumps(evil, protocol) for protocol in range(6)}
    found |= {f"batch {n}": pickle.dumps({"data": evil, "labels": [1]}, n) for n in range(6)}
    for name, new in (("torch", True), ("old torch", False)):
        out = io.BytesIO()
        torch.save({"0.weight": torch.ones(2), "evil": evil}, out, _use_new_zipfile_serialization=new)
        found[name] = out.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(evil, 2))
        archive.writestr("a/version", "3\n")
    found["archive"] = packed.getvalue()
    return found


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    return {name: made(tmp_path_factory.mktemp("samples")) for name, made in READERS.items()}


@pytest.mark.parametrize("name", READERS)
def test_a_malicious_pickle_runs_in_no_reader(tmp_path, readers, name):
    marker = tmp_path / "called"
    reader = readers[name]
    for kind, data in payloads(marker).items():
        path = tmp_path / f"file{reader.suffix}"
        path.write_bytes(data)
        with pytest.raises(LotterykitError):
            reader.read(path, Mutant(data, kind))
        assert not marker.exists(), kind


def test_the_payloads_do_run_where_they_are_unpickled(tmp_path):
    marker = tmp_path / "called"
    for kind, data in payloads(marker).items():
        if "torch" in kind or kind == "archive":
            path = tmp_path / "file.pt"
            path.write_bytes(data)
            if kind != "archive":  # which only lacks what torch asks for after the pickle
                torch.load(path, weights_only=False)
                assert marker.exists(), kind
        else:
            pickle.loads(data)
            assert marker.exists(), kind
        if marker.exists():
            marker.rmdir()
