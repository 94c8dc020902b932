"""The kernels over many tensors: interpreted against plain torch, and compiled ahead of time."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ahead_of_time import compile_kernel, resources

triton = pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent


def test_interpreter_against_torch_beside_closed_pages():
    seed = secrets.randbits(31)
    done = subprocess.run(
        [sys.executable, str(HERE / "multi_tensor_cases.py"), "100", str(seed)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"cases": 100, "failures": []}, f"seed {seed}"


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["masked_copy", "gem_miner"])
def test_compiles_without_a_stack_frame(capability, name, tmp_path):
    from lotterykit.kernels import multi_tensor as kernels

    values = {
        "plan": torch.empty(16, dtype=torch.int64, device="meta"), "tensors": 3, "FROM": kernels.tl.float32,
        "TO": kernels.tl.bfloat16, "rate": 0.1, "inertia": 0.9, "slope": 2e-4, "HAS_ACTIVE": True,
        "ALIGNED": True, "BLOCK": kernels.BLOCK,
    }  # fmt: skip
    kernel = compile_kernel(getattr(kernels, name), values, capability, warps=kernels.WARPS, stages=1)
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes a load
