import platform
from importlib import metadata

import torch

from lotterykit.bench import doctor
from lotterykit.bench.doctor import report, required
from lotterykit.ops.dispatch import BACKENDS


def test_one_line_a_reason():
    lines = report()
    assert all("\n" not in line and ": " in line for line in lines)
    assert any(line == "backend reference: ok" for line in lines)
    assert [line for line in lines if line.startswith("backend ")] == [
        line for name in BACKENDS for line in lines if line.startswith(f"backend {name}: ")
    ]
    assert any(torch.__version__ in line for line in lines)


def test_extras_come_from_the_metadata(monkeypatch):
    lines = [
        "torch>=2.11",
        'matplotlib>=3.9; extra == "plot"',
        "pytest-xdist[psutil]>=3.6 ; extra == 'test'",
        f'one.two; platform_system == "{platform.system()}" and extra == "test"',
        'elsewhere>=3; platform_system == "Elsewhere" and extra == "test"',
    ]
    wanted = {"": ["torch"], "plot": ["matplotlib"], "test": ["pytest-xdist", "one.two"]}
    assert required(lines) == wanted
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert "requirements: ok" in report()
    absent = [line for line in report() if line.startswith("extra test: missing ")]
    assert len(absent) == 1
    assert absent[0].endswith("one.two: pip install 'lotterykit[test]'")


def test_every_requirement_of_this_installation_is_understood():
    found = required(metadata.requires("lotterykit"))
    assert {"", "plot", "test"} <= set(found)
    assert {"torch", "pydantic"} <= set(found[""])
