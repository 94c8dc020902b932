"""The two published sparse training libraries on PyPI, where they are installed: sparseprop and sparselab."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

from lotterykit.bench.contender import Contender, through_autograd
from lotterykit.bench.setting import Layer, Problem, Setting

EXACT = 2**24  # SparseProp keeps its offsets in float32 on the way to int32


@functools.cache
def missing(package: str) -> str | None:
    """Why `package` cannot be used, in one line, or None where it can."""
    if importlib.util.find_spec(package) is None:
        return f"not installed: pip install {package}"
    try:
        importlib.import_module(package)
    except Exception as error:  # a foreign build can fail in any way
        return f"does not load: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def sparseprop_missing() -> str | None:
    return missing("sparseprop.modules.linear") if missing("sparseprop") is None else missing("sparseprop")


def sparselab_missing() -> str | None:
    return missing("sparselab")


def sparseprop_refuses(setting: Setting) -> str | None:
    """It has float32 on the CPU alone, and offsets that float32 holds."""
    n_in, n_out = setting.shape[1], setting.shape[-1]
    if setting.density * n_in * n_out * (9 if setting.op == "conv" else 1) > EXACT:
        return f"rounds offsets above {EXACT} kept weights"
    return _float32_on_cpu(setting)


def sparseprop_images_refuses(setting: Setting) -> str | None:
    """Its convolution over images takes them by eight, and reads and writes past the last ones."""
    if setting.op == "conv" and setting.shape[0] % 8:
        return f"takes batches of multiples of 8, got {setting.shape[0]}"
    return sparseprop_refuses(setting)


def sparselab_refuses(setting: Setting) -> str | None:
    """It has float32 on the CPU alone, and threads of its own that must be found to be set."""
    if setting.threads != 1 and _runtimes() == []:
        return "brings no OpenMP runtime whose threads could be set"
    return _float32_on_cpu(setting)


def _float32_on_cpu(setting: Setting) -> str | None:
    if setting.device != "cpu":
        return f"runs on the CPU alone, got {setting.device}"
    return None if setting.dtype == "float32" else f"computes in float32 alone, got {setting.dtype}"


def sparseprop_linear(problem: Problem) -> Contender:
    """`SparseLinear` of sparseprop; its values come in the order of a CSR."""
    layer: Layer = problem.inputs
    module = importlib.import_module("sparseprop.modules.linear").SparseLinear(layer.weight)
    return through_autograd(problem, module, module.W_val, lambda d: d)


def sparseprop_conv(problem: Problem, *, over_on: bool = False) -> Contender:
    """`SparseConv2d` of sparseprop, which vectorises over images or, if `over_on`, over output pixels; its
    values come in the order of the flattened weight's CSR."""
    layer: Layer = problem.inputs
    kind = importlib.import_module("sparseprop.modules.conv2d").SparseConv2d
    module = kind(layer.weight, padding=1, vectorizing_over_on=over_on)
    return through_autograd(problem, module, module.W_val, lambda d: d)


def sparselab_linear(problem: Problem) -> Contender:
    """The product of sparselab on its padded CSR, with the transposes that its own layer makes."""
    layer: Layer = problem.inputs
    matrix = torch.sparse_csr_tensor(
        layer.csr.row_offsets, layer.csr.columns, layer.values, layer.csr.shape, check_invariants=False
    )
    padded = importlib.import_module("sparselab.layout").from_torch_sparse_csr(matrix)
    leaf = torch.from_numpy(padded.values).requires_grad_()
    starts = torch.tensor(padded.row_start).long()
    kept = layer.csr.row_offsets.diff().long()
    row = layer.csr.row_of_each()
    first = torch.repeat_interleave(layer.csr.row_offsets[:-1].long(), kept)
    slots = starts[row] + torch.arange(layer.csr.nnz) - first
    product = importlib.import_module("sparselab.ops")._SpMMFunction.apply
    for runtime in _runtimes():
        runtime.omp_set_num_threads(problem.setting.threads)

    def forward(x: Tensor) -> Tensor:
        return product(leaf, padded, x.t().contiguous(), "simd").t()

    return through_autograd(problem, forward, leaf, lambda d: d[slots])


@functools.cache
def _runtimes() -> list[ctypes.CDLL]:
    """The OpenMP runtimes that sparselab's wheel brings along, which torch's thread count does not reach."""
    package = sys.modules.get("sparselab")
    if package is None or package.__file__ is None:
        return []
    folder = Path(package.__file__).parent
    found = [*folder.parent.glob("sparselab.libs/*omp*"), *folder.glob(".dylibs/*omp*")]
    return [ctypes.CDLL(str(path)) for path in found]
