import torch

from lotterykit.bench.doctor import report
from lotterykit.ops.dispatch import BACKENDS


def test_one_line_a_reason():
    lines = report()
    assert all("\n" not in line and ": " in line for line in lines)
    assert any(line == "backend reference: ok" for line in lines)
    assert [line for line in lines if line.startswith("backend ")] == [
        line for name in BACKENDS for line in lines if line.startswith(f"backend {name}: ")
    ]
    assert any(torch.__version__ in line for line in lines)
