"""Kernels compiled without a GPU, as a launch would specialise them, and what the machine code uses."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

NAMES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8",
    torch.float64: "*fp64", torch.int64: "*i64", torch.bool: "*i1", torch.int8: "*i8", torch.int32: "*i32",
}  # fmt: skip


def compile_kernel(function, values, capability, *, warps, stages):
    """The kernel for arguments by name: tensors may stand on "meta"."""
    import triton
    from lotterykit.kernels.tiles import MOST_REGISTERS
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        value, parameter = values[name], function.params[place]
        if isinstance(value, torch.Tensor):
            signature[name] = NAMES[value.dtype]
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        divisible = isinstance(value, torch.Tensor) or (
            signature[name] in ("i32", "i64") and value % 16 == 0 and not parameter.do_not_specialize
        )
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": MOST_REGISTERS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(kernel, folder):
    """Registers, stack bytes and local memory of the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("triton carries no cuobjdump here")
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    out = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", out)}
