"""The kernels of `masked_linear` without a GPU: its public op interpreted, and compiled ahead of time."""

import re

import pytest
import torch
from ahead_of_time import compile_kernel, resources
from interpreted import interpret

triton = pytest.importorskip("triton", reason="triton is not installed")

FORWARD, DX, DW = 0, 1, 2


PUBLIC = """
import torch
from lotterykit.ops import dispatch
from lotterykit.ops.masked_linear import masked_linear, masked_linear_reference, sample_inputs
for number, sample in enumerate(sample_inputs(dtype=torch.float32, requires_grad=True)):
    x, weight, mask, bias = sample
    with dispatch.use_backend("triton"):
        y = masked_linear(x, weight, mask, bias)
        assert "triton: chosen" in dispatch.explain("masked_linear", *sample)
    want = masked_linear_reference(x, weight, mask, bias)
    torch.testing.assert_close(y, want)
    inputs = [t for t in sample if t is not None and t.requires_grad]
    g = torch.randn_like(y)
    with dispatch.use_backend("triton"):
        got = torch.autograd.grad(y, inputs, g)
    for a, b in zip(got, torch.autograd.grad(want, inputs, g), strict=True):
        torch.testing.assert_close(a, b)
print("done")
"""


def test_public_op_through_the_interpreter():
    assert "done" in interpret("-c", PUBLIC).stdout


def compiled(capability, mode, dtype, batch, *, tf32=False, n_in=4096, n_out=4096, monkeypatch):
    """The kernel for one product of the given sizes, compiled as a launch would specialise it."""
    from lotterykit.kernels import masked_linear as kernels

    monkeypatch.setattr(kernels.tiles, "tf32_allowed", lambda: tf32)

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    bits = torch.empty(n_out, -(-n_in // 8), dtype=torch.uint8, device="meta")
    x, g, weight = empty(batch, n_in), empty(batch, n_out), empty(n_out, n_in)
    a, b, c = {
        FORWARD: (weight, x.T, g.T),
        DX: (weight.T, g.T, x.T),
        DW: (empty(n_out, batch), empty(n_in, batch).T, weight) if tf32 else (g.T, x, weight),
    }[mode]
    bias = empty(n_out) if mode == FORWARD else None
    _, values, config = kernels.arguments(mode, a, b, bits, bias, c)
    return compile_kernel(
        kernels.masked_product, values, capability, warps=config.warps, stages=config.stages
    )


MODES = pytest.mark.parametrize("mode", [FORWARD, DX, DW], ids=["forward", "dx", "dw"])
TYPES = pytest.mark.parametrize(
    ("dtype", "tf32"),
    [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)],
    ids=["bf16", "fp16", "tf32", "fp32"],
)


@MODES
@TYPES
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_a_stack_frame(capability, dtype, tf32, mode, tmp_path, monkeypatch):
    kernel = compiled(capability, mode, dtype, 512, tf32=tf32, monkeypatch=monkeypatch)
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert kernel.metadata.shared <= 99 * 1024


@MODES
@TYPES
@pytest.mark.parametrize("batch", [8, 512])
def test_hopper_uses_its_matrix_units(dtype, tf32, mode, batch, monkeypatch):
    ptx = compiled(90, mode, dtype, batch, tf32=tf32, monkeypatch=monkeypatch).asm["ptx"]
    if dtype == torch.float32 and not tf32:
        assert "mma" not in ptx  # full precision has no matrix unit
        return
    assert "wgmma.mma_async" in ptx
    if mode != DW:
        from_registers = re.findall(r"wgmma\.mma_async\S+ *\{[^}]*\}, *\{", ptx)
        assert len(from_registers) == len(re.findall(r"wgmma\.mma_async", ptx))
    assert ptx.count("cp.async.c") > 0  # loads are pipelined through shared memory


@MODES
def test_odd_sizes_and_64_bit_offsets_compile(mode, monkeypatch, tmp_path):
    for sizes in ({"batch": 37, "n_in": 101, "n_out": 53}, {"batch": 512, "n_in": 2**16, "n_out": 2**16}):
        kernel = compiled(90, mode, torch.bfloat16, monkeypatch=monkeypatch, **sizes)
        assert resources(kernel, tmp_path)["STACK"] == 0
