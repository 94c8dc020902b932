"""The GPU check without a GPU: its checks in the interpreter and on the CPU, its tables on small sizes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lotterykit.bench import gpu_checks, gpu_goals
from lotterykit.ops import dispatch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_says_in_one_line_that_there_is_no_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len((done.stderr + done.stdout).splitlines()) == 1


@pytest.fixture
def script(monkeypatch):
    """The script as a module on a pretended GPU, its stages not started."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended GPU")
    monkeypatch.setattr(module, "start_stage", lambda stage, limit: None)
    monkeypatch.setattr(module, "missing", lambda backend: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    return module


def test_a_check_that_did_not_run_is_no_success(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert script.main() == 0
    monkeypatch.setattr(script, "missing", lambda backend: "not built" if backend == "cuda" else None)
    assert script.main() == 1
    assert "check-topk_mask: NOT CHECKED, not built" in capsys.readouterr().out
    monkeypatch.setattr(script, "missing", lambda backend: None)
    monkeypatch.setattr(script, "BUDGET", 0.0)
    assert script.main() == 1
    assert "check-masked_linear: NOT CHECKED, the time budget of 0 s is spent" in capsys.readouterr().out


def test_masked_linear_check_passes_in_the_interpreter_and_sees_a_broken_kernel():
    pytest.importorskip("triton")
    code = """
from lotterykit.bench import gpu_checks
from lotterykit.kernels import masked_linear as kernels
gpu_checks.SHAPES = ((1, 1, 1), (37, 101, 53), (0, 5, 3))
assert gpu_checks.check_masked_linear(3, device="cpu") == []
right = kernels.PRODUCTS
kernels.PRODUCTS = (lambda x, w, b, bias: right[0](x, w, b, bias) * 1.01, *right[1:])
from lotterykit.ops import dispatch
dispatch._load.cache_clear()
assert any("forward" in failure for failure in gpu_checks.check_masked_linear(3, device="cpu"))
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "done" in done.stdout, done.stderr[-3000:]


def test_topk_check_passes_on_the_cpu(monkeypatch):
    backend = "cpu" if dispatch.missing("cpu") is None else "reference"
    assert gpu_checks.check_topk_mask(5, device="cpu", backend=backend) == []
    real = gpu_checks.topk_mask
    monkeypatch.setattr(gpu_checks, "topk_mask", lambda scores, **k: [~m for m in real(scores, **k)])
    assert gpu_checks.check_topk_mask(5, device="cpu", backend=backend)


def test_tables_hold_all_peers_and_give_verdicts(monkeypatch):
    monkeypatch.setattr(gpu_goals, "use_backend", lambda *a, **k: dispatch.use_backend("reference"))
    tables = []
    gpu_goals.time_masked_linear(tables.append, shape=(4, 8, 8), device="cpu", compiled=False)
    assert set(tables[-1]) == {"tf32", "bf16"}
    assert set(tables[-1]["tf32"]) == {"ours", "dense-masked", "dense"}
    lines = gpu_goals.verdicts("masked_linear", tables[-1])
    assert lines[0].startswith(("G1: holds", "G1: missed"))
    assert lines[1].startswith("G2: not measured")
    gpu_goals.time_topk_mask(tables.append, tensors=2, each=50, device="cpu")
    assert all(set(row) == {"ours", "topk", "sort", "kthvalue"} for row in tables[-1].values())
    assert len(gpu_goals.verdicts("topk_mask", tables[-1])) == 3
