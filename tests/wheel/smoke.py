"""What an installed wheel must do, run by its own Python from any folder outside the repository.

    python tests/wheel/smoke.py

Used by tests/wheel/test_wheel.py and, for every wheel that is released, by cibuildwheel (pyproject.toml).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch

import lotterykit as lk

REPOSITORY = Path(__file__).resolve().parents[2]


def installed() -> str:
    """The package is the installed one, whole, and typed."""
    package = Path(lk.__file__).resolve().parent
    assert not package.is_relative_to(REPOSITORY), f"imported from the repository: {package}"
    assert (package / "py.typed").exists()
    assert lk.__version__ == metadata.version("lotterykit")
    missing = [name for name in lk.__all__ if not hasattr(lk, name)]
    assert not missing, missing
    return f"lotterykit {lk.__version__} from {package}"


def doctor() -> str:
    """The console script says that the native backend is there."""
    script = Path(sys.executable).with_name("lotterykit")
    told = subprocess.run([script, "doctor"], capture_output=True, text=True, timeout=300, check=True).stdout
    assert "backend cpu: ok" in told, told
    assert f"lotterykit: {lk.__version__}\n" in told, told
    return told.rstrip()


def layers() -> str:
    """A sparse layer on native code gives what its reference gives, forward and backward."""
    torch.set_num_threads(2)
    layer = lk.MaskedLinear(256, 128, format="sparse")
    x = torch.randn(64, 256, requires_grad=True)
    given = {}
    for backend in ("cpu", "reference"):
        with lk.use_backend(backend):
            y = layer(x)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
        given[backend] = (y, dx)
    torch.testing.assert_close(given["cpu"], given["reference"], rtol=1e-4, atol=1e-4)
    return "sparse layer: native code and reference agree"


def masks() -> str:
    """`topk_mask` on native code, ties included, is the reference's bit for bit."""
    scores = [torch.randn(1000, 50).round(decimals=1), torch.zeros(3333)]
    chosen = {}
    for backend in ("cpu", "reference"):
        with lk.use_backend(backend):
            chosen[backend] = lk.ops.topk_mask(scores, k=30_001, seed=7)
    assert all(map(torch.equal, chosen["cpu"], chosen["reference"]))
    assert sum(int(mask.sum()) for mask in chosen["cpu"]) == 30_001
    return "topk_mask: native code and reference agree"


def sweep() -> str:
    """Four cells in a worker process, kept in a store and not run again."""
    small = {"task": "relu", "samples": 200, "epochs": 1, "width": 20, "depth": 3}
    cells = lk.Sweep(small, {"method": ["snip", "synflow"], "density": [0.1, "truth"]}, 1, oracle=False)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "runs.sqlite")
        first = cells.run(workers=1, store=store)
        again = cells.run(workers=1, store=store)
        assert (first.ran, first.failed, len(first.rows)) == (4, [], 4), first.failed
        assert (again.ran, again.reused) == (0, 4)
    return "sweep: 4 cells run, 4 reused"


def openmp() -> str:
    """torch and native code share one OpenMP runtime: `auditwheel repair` must not have added another."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    runtimes = {line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line}
    assert len(runtimes) <= 1, runtimes
    return f"OpenMP: {', '.join(sorted(runtimes)) or 'no runtime seen'}"


if __name__ == "__main__":  # workers of the sweep import this file again
    for check in (installed, doctor, layers, masks, sweep, openmp):
        print(check(), flush=True)
