"""The kernels beside the matrix products: compiled ahead of time."""

import pytest
import torch
from ahead_of_time import compile_kernel, resources

triton = pytest.importorskip("triton", reason="triton is not installed")


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


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["row_sums", "column_sums", "outer"])
def test_synflow_compiles_without_a_stack_frame(capability, dtype, name, tmp_path):
    from lotterykit.kernels import synflow as kernels

    def empty(*shape, dtype=torch.float64):
        return torch.empty(shape, dtype=dtype, device="meta")

    mask = torch.empty(4096, 4096, dtype=torch.bool, device="meta")
    values = kernels._values(empty(4096, 4096, dtype=dtype), mask) | {"STEPS": -1, "PER_PART": 64}
    values |= {vector: empty(4096) for vector in ("x", "y", "g", "parts", "scores")}
    kernel = compile_kernel(getattr(kernels, name), values, capability, warps=kernels.WARPS, stages=1)
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_match_neurons_compiles_without_a_stack_frame(capability, tmp_path):
    from lotterykit.kernels import match_neurons as kernels

    matrix = torch.empty(100, 1000, dtype=torch.float64, device="meta")
    bytes_of = torch.empty(1000, dtype=torch.uint8, device="meta")
    values = {
        "cosine": matrix, "norm": matrix, "length": matrix, "taken": bytes_of, "aligned": bytes_of,
        "chosen": torch.empty(100, dtype=torch.int64, device="meta"), "TARGETS": 100, "N": 1000,
        "TIE": 1e-12, "COUNT": -1, "BLOCKS": 1, "BLOCK": kernels.BLOCK,
    }  # fmt: skip
    kernel = compile_kernel(kernels.take_in_turn, values, capability, warps=kernels.WARPS, stages=1)
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert "bar.sync" in kernel.asm["ptx"]
