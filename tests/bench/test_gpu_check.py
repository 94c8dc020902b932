"""The GPU check without a GPU: its checks in the interpreter and on the CPU, its tables on small sizes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lotterykit.bench import gpu_checks, gpu_goals, gpu_goals_products, gpu_goals_sparse, gpu_synflow
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


def interpreted(code):
    """Run `code` with Triton's interpreter in a process of its own; it prints "done" at its end."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "done" in done.stdout, done.stderr[-3000:]


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
    interpreted(code)


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


def test_tables_of_the_sparse_products_hold_all_peers_and_give_verdicts():
    tables = []
    gpu_goals_sparse.time_spmm(tables.append, shape=(8, 300, 20), square=40, device="cpu", seconds=0.01)
    assert set(tables[-1]) == {"bf16 0.01", "tf32 0.01", "bf16 0.001"}
    assert {"ours", "dense", "dense-masked", "csr", "csr-columns"} == set(tables[-1]["tf32 0.01"])
    lines = gpu_goals_sparse.verdicts("spmm", tables[-1])
    assert [text.split(":")[0] for text in lines] == ["G3 bf16", "G3 tf32", "G4 bf16", "G4 fp32", "G5"]
    assert lines[1].startswith(("G3 tf32: holds", "G3 tf32: missed"))
    gpu_goals_sparse.time_sddmm(tables.append, shape=(8, 30, 20), device="cpu", seconds=0.01)
    assert all(set(row) == {"ours", "dense-masked"} for row in tables[-1].values())
    assert len(gpu_goals_sparse.verdicts("sddmm", tables[-1])) == 2


def test_of_several_peers_the_fastest_counts_and_one_that_cannot_run_is_named(caplog):
    def broken(layer):
        raise RuntimeError("no such algorithm")

    sets = gpu_goals_sparse.layers((4, 6, 5), 0.5, torch.float32, "cpu")
    table, peers = {}, {"ours": lambda layer: layer.x, "csr": broken}
    gpu_goals_sparse._time_row(table, "tf32 0.01", sets, peers, lambda table: None, "cpu", 0.01)
    assert set(table["tf32 0.01"]) == {"ours"}
    assert "tf32 0.01: csr does not run: no such algorithm" in caplog.text
    table["tf32 0.01"] = {"ours": {"us": 1.0}, "csr": {"us": 9.0}, "csr-columns": {"us": 4.0}}
    assert "G4 fp32: holds, 4.00x of 3x" in gpu_goals_sparse.verdicts("spmm", table)[3]


def test_product_checks_pass_in_the_interpreter_and_see_broken_kernels():
    pytest.importorskip("triton")
    code = """
from lotterykit.bench import gpu_checks_products as checks
from lotterykit.kernels import masked_conv2d as conv, multi_tensor, threshold
from lotterykit.ops import dispatch
checks.CONVOLUTIONS = ((2, 3, 4, 5, 4, 3, 2, 1, 1, 1), (1, 4, 4, 4, 4, 2, 1, 0, 2, 2))
checks.LINEARS = ((5, 17, 9), (0, 5, 3))
checks.random.randrange = lambda n: 100 if n == 200_000 else 7
assert checks.check_masked_conv2d(3, device="cpu") == []
assert checks.check_threshold(3, device="cpu") == []
assert checks.check_multi_tensor(2, device="cpu") == []
from lotterykit.bench import gpu_synflow
assert gpu_synflow.check_synflow(3, most=40, device="cpu") == []
assert gpu_synflow.check_match_neurons(3, most=40, device="cpu") == []
right = conv.PRODUCTS
conv.PRODUCTS = (*right[:2], lambda g, x, b, dw, geometry: right[2](g, x, b, dw, geometry).mul_(1.1))
dispatch._load.cache_clear()
assert any(": dw" in failure for failure in checks.check_masked_conv2d(2, device="cpu"))
theirs = threshold.PRODUCTS
threshold.PRODUCTS = (lambda *a: theirs[0](*a).mul_(1.1), *theirs[1:])
multi_tensor.gem_miner_step = lambda *a: None
dispatch._load.cache_clear()
assert any(": y" in failure for failure in checks.check_threshold(2, device="cpu"))
assert any("gem_miner" in failure for failure in checks.check_multi_tensor(1, device="cpu"))
print("done")
"""
    interpreted(code)


def test_product_tables_hold_their_peers():
    tables = []
    gpu_goals_products.time_edge_popup(tables.append, shape=(4, 8, 8), device="cpu")
    assert set(tables[-1]) == {"tf32", "bf16"}
    assert gpu_goals.verdicts("edge_popup", tables[-1])[0].startswith(("G9: holds", "G9: missed"))
    gpu_goals_products.time_gem_miner(tables.append, tensors=2, each=10, device="cpu")
    assert gpu_goals.verdicts("gem_miner", tables[-1])[0].startswith(("G10: holds", "G10: missed"))
    gpu_goals_products.time_masked_conv2d(tables.append, shapes=((1, 2, 4, 3),), device="cpu")
    assert [set(row) for row in tables[-1].values()] == [{"ours", "dense-masked", "dense"}]
    gpu_synflow.time_synflow(tables.append, widths=(5, 6, 4), rounds=3, device="cpu")
    assert set(tables[-1]["rounds"]) == {"ours", "eager-sort", "eager-kthvalue"}
    assert len(gpu_goals.verdicts("synflow", tables[-1])) == 2
    gpu_goals_products.time_masked_copies(tables.append, tensors=2, side=5, device="cpu")
    assert set(tables[-1]["bf16"]) == {"ours", "multiply-and-cast"}


def test_graph_check_passes_in_the_interpreter_and_sees_a_graph_that_stands_still():
    pytest.importorskip("triton")
    code = """
from lotterykit.bench import gpu_checks_graphs as checks
checks.WARM = checks.REPLAYS = 1
checks.BATCH, checks.SIDE, checks.WIDTH = 2, 3, 4
assert checks.check_graphs(device="cpu") == []
def still(step, device):
    checks._warmed(step)
    return lambda: None
checks._captured = still
assert [text.split(":")[0] for text in checks.check_graphs(device="cpu")] == [
    "masked training", "masked training, autocast", "masked_copies", "masked training by copies",
    "sparse training", "gem-miner training",
]
print("done")
"""
    interpreted(code)
