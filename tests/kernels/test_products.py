"""The implicit GEMM of convolutions and threshold layers: its public ops interpreted, and compiled ahead."""

import re
import signal
from pathlib import Path

import pytest
import torch
from ahead_of_time import compile_kernel, resources
from interpreted import interpret

triton = pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent


UNMASKED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, triton
import triton.language as tl
from generated import Draw
from lotterykit.kernels import tiles
@triton.jit
def copy(x, y, n, MASKED: tl.constexpr):
    i = tl.arange(0, 128)
    if MASKED:
        tl.store(y + i, tl.load(x + i, i < n, 0.0), i < n)
    else:
        tl.store(y + i, tl.load(x + i), i < n)
draw = Draw(0)
draw.rng.random = lambda: 0.0  # the page after the last entry
draw.lay_out_launches()
x, y = torch.randn(100), torch.empty(100)
values = {"x": x, "y": y, "n": 100, "MASKED": sys.argv[2] == "masked"}
tiles.launch(copy, 1, x.device, values, 1, 1)
assert torch.equal(x, y)
"""


def test_a_load_without_its_mask_faults(tmp_path):
    script = tmp_path / "unmasked.py"
    script.write_text(UNMASKED)
    interpret(str(script), str(HERE), "masked")
    assert interpret(str(script), str(HERE), "bare", check=False).returncode == -signal.SIGSEGV


PUBLIC = """
import torch
from lotterykit.ops import dispatch, masked_conv2d, threshold_conv2d, threshold_linear
import importlib
def samples(op):
    module = importlib.import_module(f"lotterykit.ops.{op}")
    found = module.sample_inputs(dtype=torch.float32, requires_grad=True)
    return [s if isinstance(s[-1], dict) else (s, {}) for s in found]
for op, function in {"masked_conv2d": masked_conv2d, "threshold_conv2d": threshold_conv2d,
                     "threshold_linear": threshold_linear}.items():
    for arguments, options in samples(op):
        with dispatch.use_backend("triton"):
            y = function(*arguments, **options)
            assert "triton: chosen" in dispatch.explain(op, *arguments, **options)
        with dispatch.use_backend("reference"):
            want = function(*arguments, **options)
        torch.testing.assert_close(y, want)
        inputs = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
        g = torch.randn_like(y)
        with dispatch.use_backend("triton"):
            got = torch.autograd.grad(y, inputs, g)
        with dispatch.use_backend("reference"):
            expected = torch.autograd.grad(want, inputs, g)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    print(op, "done")
"""


def test_public_ops_through_the_interpreter(tmp_path):
    script = tmp_path / "public.py"
    script.write_text(PUBLIC)
    assert interpret(str(script)).stdout.count("done") == 3


FORWARD, DX, DW, PARTS, ADD = range(5)
LINEAR, LAST, FIRST = "linear", "channels-last", "contiguous"


def launches(what, kind, dtype, keep, size=None):
    """(kernel, its arguments by name, configuration) of a product of `kind`, kept by bits or by scores."""
    from lotterykit.kernels import kept_product, weight_gradient

    n, n_in, n_out, side, k, stride = size or (
        (512, 4096, 4096, 1, 1, 1) if kind == LINEAR else (32, 128, 256, 16, 3, 2)
    )
    geometry = [k, k, stride, stride, *[k // 2] * 4, 1, 1, 1]
    out = (side + 2 * (k // 2) - k) // stride + 1

    def empty(*shape, dtype=dtype):
        layout = torch.channels_last if kind == LAST and len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

    x, g, weight = empty(n, n_in, side, side), empty(n, n_out, out, out), empty(n_out, n_in, k, k)
    if keep == "bits":
        kept = torch.empty(n_out, k, k, -(-n_in // 8), dtype=torch.uint8, device="meta")
    else:
        cut = torch.empty(2, dtype=torch.float64, device="meta")
        values = empty(n_out, n_in, k, k, dtype=torch.float32)
        kept = kept_product.Scores(values, cut, keep == "absolute", (1, 2**32 - 1), 16)
    if what in (FORWARD, DX):
        source, target = (x, g) if what == FORWARD else (g, x)
        bias = empty(n_out) if what == FORWARD else None
        found = kept_product.operands(source, weight, kept, bias, target, geometry, transposed=what == DX)
        return [(kept_product.kept_product, *kept_product.arguments(o)[1:]) for o in found]
    if kind == LINEAR and dtype == torch.float32:  # as kernels/threshold.py lays them for TF32
        x, g = (t.new_empty(t.shape[1], n, 1, 1).transpose(0, 1) for t in (x, g))
    scored = keep != "bits"
    ds = torch.empty(weight.shape, device="meta") if scored else None
    o = weight_gradient.operands(
        g, x, weight if scored else None, kept, weight.new_empty(weight.shape), ds, geometry
    )
    stage = {DW: weight_gradient.WHOLE, PARTS: weight_gradient.PARTS, ADD: weight_gradient.ADD}[what]
    parts = torch.empty(16, device="meta")
    made = weight_gradient.arguments(o, stage, 1 if what == DW else 4, parts)
    return [(weight_gradient.weight_gradient, *made[1:])]


def compiled(made, capability):
    function, values, config = made
    return compile_kernel(function, values, capability, warps=config.warps, stages=config.stages)


WHAT = pytest.mark.parametrize("what", range(5), ids=["forward", "dx", "dw", "parts", "add"])
KEEP = pytest.mark.parametrize("keep", ["bits", "absolute"])
TYPES = pytest.mark.parametrize(
    ("dtype", "tf32"),
    [(torch.bfloat16, False), (torch.float32, True), (torch.float32, False)],
    ids=["bf16", "tf32", "fp32"],
)


@WHAT
@KEEP
@TYPES
@pytest.mark.parametrize("kind", [LINEAR, LAST])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_a_stack_frame(capability, kind, dtype, tf32, keep, what, tmp_path, monkeypatch):
    from lotterykit.kernels import tiles

    monkeypatch.setattr(tiles, "tf32_allowed", lambda: tf32)
    kernel = compiled(launches(what, kind, dtype, keep)[-1], capability)
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert kernel.metadata.shared <= 99 * 1024
    if capability != 90:
        return
    ptx = kernel.asm["ptx"]
    if what == ADD or (dtype == torch.float32 and not tf32):
        assert "mma" not in ptx  # nothing is multiplied, or in full precision, which has no matrix unit
        return
    assert "wgmma.mma_async" in ptx
    assert ptx.count("cp.async.c") > 0  # loads are pipelined through shared memory
    if what in (FORWARD, DX):
        from_registers = re.findall(r"wgmma\.mma_async\S+ *\{[^}]*\}, *\{", ptx)
        assert len(from_registers) == len(re.findall(r"wgmma\.mma_async", ptx))


@WHAT
@KEEP
def test_contiguous_images_and_odd_sizes_compile(what, keep, tmp_path):
    for kind, dtype, size in (
        (FIRST, torch.bfloat16, None),
        (FIRST, torch.float16, (7, 21, 35, 9, 3, 2)),
        (LAST, torch.bfloat16, (2**12, 256, 256, 64, 3, 1)),  # offsets of 64 bits
        (LINEAR, torch.float16, (37, 101, 53, 1, 1, 1)),
    ):
        kernel = compiled(launches(what, kind, dtype, keep, size)[-1], 90)
        assert resources(kernel, tmp_path)["STACK"] == 0
