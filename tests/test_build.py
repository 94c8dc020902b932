"""The native build: incremental, per-module failures, and kernels that fit the registers of each target."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOUND = {
    "a C++ compiler": any(map(shutil.which, ("c++", "g++", "clang++"))),
    "ninja": bool(importlib.util.find_spec("ninja") or shutil.which("ninja")),
    "setuptools": bool(importlib.util.find_spec("setuptools")),
}
ABSENT = ", ".join(name for name, found in FOUND.items() if not found)
needs_cxx = pytest.mark.skipif(bool(ABSENT), reason=f"missing: {ABSENT}")
needs_setuptools = pytest.mark.skipif(not FOUND["setuptools"], reason="missing: setuptools")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the build reads."""
    for name in ("csrc", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_report.json")
    shutil.copytree(ROOT / "lotterykit", tmp_path / "lotterykit", ignore=ignored)
    return tmp_path


def build(checkout: Path, **environment: str) -> tuple[dict, str]:
    """Runs build_ext in place; returns the report and what was printed."""
    clean = {
        k: v for k, v in os.environ.items() if k not in ("CXX", "NVCC") and not k.startswith("LOTTERYKIT_")
    }
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((checkout / "lotterykit" / "_build_report.json").read_text())
    return report, done.stdout + done.stderr


def libraries(checkout: Path) -> list[str]:
    return sorted(p.name.split(".")[0] for p in (checkout / "lotterykit").glob("*.so"))


@needs_cxx
def test_the_build_is_incremental_and_a_failure_leaves_a_reason(checkout):
    report, text = build(checkout, LOTTERYKIT_NO_CUDA="1")
    assert report["cpu"]["built"], report
    assert report["cuda"] == {
        "built": False,
        "reason": "LOTTERYKIT_NO_CUDA=1 was set when lotterykit was installed",
    }
    assert libraries(checkout) == ["_cpu"]

    _, text = build(checkout, LOTTERYKIT_NO_CUDA="1")
    assert "no work to do" in text

    header = checkout / "csrc" / "cpu" / "topk_scan.h"  # bindings_cpu.cpp does not include it
    header.write_text(header.read_text() + "// touched\n")
    _, text = build(checkout, LOTTERYKIT_NO_CUDA="1")
    assert "topk_scan.cpp" in text
    assert "bindings_cpu" not in text.replace("bindings_cpu.cpp.o", "")

    header.write_text(header.read_text() + "#error broken on purpose\n")
    report, _ = build(checkout, LOTTERYKIT_NO_CUDA="1")
    assert not report["cpu"]["built"]
    assert "broken on purpose" in report["cpu"]["reason"]
    assert libraries(checkout) == []  # the library of the earlier build is gone


OUT_OF_BOUNDS = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("lotterykit._cpu", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
from lotterykit.ops.topk_mask import tie_rank
n, seed = 14_000_000, 5
draws = torch.arange(int(n ** (2 / 3)))
jitter = tie_rank(draws, seed).double() * 2.0**-32
x = torch.randn(n).clamp(-9, 9)
sampled = ((draws.double() + jitter) * (n / len(draws))).long().clamp(max=n - 1)
x[sampled] = torch.where(draws % 2 == 0, 10.0, -10.0)
x[int(n * 0.45):] = float("nan")
mask = torch.empty(n, dtype=torch.bool)
print(native.topk_mask([x.data_ptr()], [], [mask.data_ptr()], [n], False, n // 2, seed, 1)[0])
"""


@needs_cxx
def test_native_code_keeps_its_bounds_where_nan_outnumber_the_rest(checkout):
    """With a checked operator[]: fewer numbers than k, and the first pass gives up before it meets a NaN."""
    build(checkout, LOTTERYKIT_NO_CUDA="1", CXXFLAGS="-D_GLIBCXX_ASSERTIONS -O1")
    (library,) = (checkout / "lotterykit").glob("_cpu*.so")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_BOUNDS, library], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("nan\n", 0), done.stderr


@needs_setuptools
def test_an_old_setuptools_is_refused_in_one_line(checkout):
    code = "import runpy, setuptools; setuptools.__version__ = '70.1.0'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("lotterykit: building needs setuptools >= 77, found 70.1.0")
    assert len(done.stderr.splitlines()) == 1


@needs_setuptools
@pytest.mark.parametrize(
    ("known", "code"),
    [
        ("80 90 100 120", ["sm_80", "sm_90a", "sm_100", "compute_100"]),
        ("75 80 86 90", ["sm_80", "sm_90a", "compute_90"]),
        ("75 80 86", ["sm_80", "compute_80"]),
    ],
)
def test_the_ptx_is_of_an_architecture_that_newer_devices_can_use(known, code, tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\nfor known in {known}; do echo sm_$known; done\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    monkeypatch.delenv("LOTTERYKIT_NO_CUDA", raising=False)
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    assert runpy.run_path(str(ROOT / "setup.py"))["find_nvcc"]() == ([str(nvcc)], code)


@needs_setuptools
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"LOTTERYKIT_NO_NATIVE": "1"}, "LOTTERYKIT_NO_NATIVE=1"),
        ({"CXX": "no-such-compiler"}, "no-such-compiler"),
        ({"CXX": "false"}, "false does not compile C++17"),
        ({"PATH": "/nonexistent"}, "no C++ compiler was found"),
    ],
)
def test_without_a_compiler_the_build_succeeds_and_says_why(checkout, environment, reason):
    report, text = build(checkout, **environment)
    for kind in ("cpu", "cuda"):
        assert not report[kind]["built"]
        assert reason in report[kind]["reason"]
        assert f"lotterykit._{kind} is not built" in text
    assert libraries(checkout) == []


@needs_cxx
def test_a_failing_nvcc_does_not_fail_the_cpu_module(checkout):
    report, _ = build(checkout, NVCC="no-such-nvcc")
    assert report["cpu"]["built"]
    assert "nvcc does not run" in report["cuda"]["reason"]
    if shutil.which("nvcc"):
        kernel = checkout / "csrc" / "cuda" / "topk_mask.cu"
        kernel.write_text(kernel.read_text() + "#error broken on purpose\n")
        report, _ = build(checkout)
        assert report["cpu"]["built"]
        assert "broken on purpose" in report["cuda"]["reason"]
    assert libraries(checkout) == ["_cpu"]


@needs_nvcc
@pytest.mark.parametrize("source", sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ids=lambda path: path.stem)
@pytest.mark.parametrize("architecture", ["80", "90a", "100"])
def test_cuda_kernels_use_no_stack_and_spill_nothing(architecture, source, tmp_path):
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    words = ["nvcc", "-std=c++17", "-O3", target, "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "a.cubin")]
    done = subprocess.run([*words, str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    frames = re.findall(counts, done.stderr)
    assert frames
    assert set(frames) == {("0", "0", "0")}, done.stderr


@needs_cxx
def test_one_openmp_runtime_is_shared_with_torch():
    code = """
import torch, pathlib
import lotterykit._cpu as native
torch.ones(1 << 20).sum()
maps = pathlib.Path("/proc/self/maps")
lines = maps.read_text().splitlines() if maps.exists() else []
print(len({line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line}), native.openmp)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    if "No module named 'lotterykit._cpu'" in done.stderr:
        pytest.skip("lotterykit._cpu is not built here")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) <= 1
