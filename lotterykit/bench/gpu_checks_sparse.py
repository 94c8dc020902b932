"""The CUDA sparse products on a real GPU, against float64: each function returns the failures it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.sddmm import sddmm_cuda
from lotterykit.ops.spmm import spmm, spmm_cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WAYS = ("auto", "slabs", "gather")
DENSITIES = (0.01, 0.1, 0.001, 1.0, 0.03, 0.0, 0.3)
# (batch, in, out): tiles, slabs and row sets that are full, begun, missing
SHAPES = (
    (1, 1, 1),
    (37, 101, 53),
    (64, 768, 512),
    (65, 769, 513),
    (300, 2500, 1100),
    (4096, 1024, 1024),
    (0, 5, 3),
    (5, 0, 3),
    (5, 3, 0),
)


def check_spmm(cases: int = 60, *, device: str = "cuda") -> list[str]:
    """y = act(x W^T + b) and g W of every dtype and way, and that a second run gives the same bits."""
    failures = []
    for dtype, way, x, g, csr, where in _cases(cases, device):
        values, bias = _normal(dtype, device, csr.nnz), _normal(dtype, device, csr.shape[0])
        wide = csr.scatter(values.double())
        y = spmm_cuda(x, values, csr.tensors, bias, True, way=way)
        expected = (x.double() @ wide.T + bias.double()).relu()
        size = x.double().abs() @ wide.abs().T + bias.double().abs()
        found = [_excess("y", y, expected, size, csr.row_offsets.diff() + 1)]
        dx = spmm_cuda(g, values, csr.tensors, None, False, True, way=way)
        size = g.double().abs() @ wide.abs()
        found.append(_excess("dx", dx, g.double() @ wide, size, csr.column_offsets.diff()))
        if not torch.equal(dx, spmm_cuda(g, values, csr.tensors, None, False, True, way=way)):
            found.append("two runs differ")
        failures += [f"spmm {where}: {what}" for what in found if what]
    return failures + _check_gradients(device)


def check_sddmm(cases: int = 60, *, device: str = "cuda") -> list[str]:
    """g^T x at the kept places of every dtype and way, and that a second run gives the same bits."""
    failures = []
    for _, way, x, g, csr, where in _cases(cases, device):
        dvalues = sddmm_cuda(g, x, csr.tensors, way=way)
        expected, size = g.double().T @ x.double(), g.double().abs().T @ x.double().abs()
        terms = torch.tensor(x.shape[0], device=device)
        found = [_excess("dvalues", dvalues, csr.gather(expected), csr.gather(size), terms)]
        if not torch.equal(dvalues, sddmm_cuda(g, x, csr.tensors, way=way)):
            found.append("two runs differ")
        failures += [f"sddmm {where}: {what}" for what in found if what]
    return failures


def check_sparse_large(*, rows: int = 2**20 + 3, wide: int = 2048, narrow: int = 64) -> list[str]:
    """Offsets beyond 2^31: x `[rows, wide]` is read, dx of that shape written, and sddmm sums over rows."""
    csr = CSR.from_mask(torch.rand(narrow, wide, device="cuda") < 0.02)
    x, g = (torch.randn(rows, n, device="cuda", dtype=torch.bfloat16) for n in (wide, narrow))
    values = _normal(torch.bfloat16, "cuda", csr.nnz)
    dense = csr.scatter(values.double())
    failures = []
    for way in WAYS[1:]:
        y = spmm_cuda(x, values, csr.tensors, way=way)
        dx = spmm_cuda(g, values, csr.tensors, None, False, True, way=way)
        for start in (0, rows // 2, rows - 64):
            part = slice(start, start + 64)
            a, b = x[part].double(), g[part].double()
            found = [
                _excess("y", y[part], a @ dense.T, a.abs() @ dense.abs().T, csr.row_offsets.diff()),
                _excess("dx", dx[part], b @ dense, b.abs() @ dense.abs(), csr.column_offsets.diff()),
            ]
            failures += [f"spmm large {way}, rows from {start}: {what}" for what in found if what]
        del y, dx
    expected, size = (torch.zeros(narrow, wide, device="cuda", dtype=torch.float64) for _ in range(2))
    for a, b in zip(g.split(2**16), x.split(2**16), strict=True):
        expected += a.double().T @ b.double()
        size += a.double().abs().T @ b.double().abs()
    for way in WAYS[1:]:
        dvalues = sddmm_cuda(g, x, csr.tensors, way=way)
        # Sums of a tile, of a part's tiles and of the parts: far fewer roundings in a row than examples.
        what = _excess("dvalues", dvalues, csr.gather(expected), csr.gather(size), torch.tensor(rows // 16))
        failures += [f"sddmm large {way}: {what}"] if what else []
    return failures


def _cases(count: int, device: str) -> Iterator[tuple[torch.dtype, str, Tensor, Tensor, CSR, str]]:
    """(dtype, way, x, g, structure, what to call it), with empty rows and columns among them."""
    for case in range(count):
        dtype, way = DTYPES[case % len(DTYPES)], WAYS[case % len(WAYS)]
        batch, n_in, n_out = (
            SHAPES[case]
            if case < len(SHAPES)
            else (int(torch.randint(1, top, ())) for top in (400, 2000, 1500))
        )
        density = DENSITIES[case % len(DENSITIES)]
        mask = torch.rand(n_out, n_in, device=device) < density
        mask &= torch.rand(n_out, 1, device=device) < 0.9
        x, g = _normal(dtype, device, batch, n_in), _normal(dtype, device, batch, n_out)
        where = f"{dtype} {way} ({batch}, {n_in}, {n_out}) density {density:g}"
        yield dtype, way, x, g, CSR.from_mask(mask), where


def _check_gradients(device: str) -> list[str]:
    """The whole way, by dispatch and autograd, on a stream of its own."""
    csr = CSR.from_mask(torch.rand(300, 500, device=device) < 0.05)
    x, values = _normal(torch.float32, device, 70, 500), _normal(torch.float32, device, csr.nnz)
    g, tracked = _normal(torch.float32, device, 70, 300), (x.requires_grad_(), values.requires_grad_())
    stream = torch.cuda.Stream() if device == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with nullcontext() if stream is None else torch.cuda.stream(stream), use_backend("cuda"):
        dx, dvalues = torch.autograd.grad(spmm(x, values, csr), tracked, g)
    if stream is not None:
        torch.cuda.current_stream().wait_stream(stream)
    wide, x, g = csr.scatter(values.detach().double()), x.detach().double(), g.double()
    terms = torch.tensor(70, device=device)
    found = [
        _excess("dx", dx, g @ wide, g.abs() @ wide.abs(), csr.column_offsets.diff()),
        _excess("dvalues", dvalues, csr.gather(g.T @ x), csr.gather(g.abs().T @ x.abs()), terms),
    ]
    return [f"spmm through autograd: {what}" for what in found if what]


def _normal(dtype: torch.dtype, device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _excess(what: str, got: Tensor, expected: Tensor, size: Tensor, terms: Tensor) -> str | None:
    """How far `got` lies over (terms + 1) * eps * sum |products| and the rounding of half precision."""
    half = got.dtype in (torch.float16, torch.bfloat16)
    eps = torch.finfo(torch.float32 if half else got.dtype).eps
    bound = (terms.to(size.device) + 1) * eps * size
    if half:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (expected.abs() + bound) + finfo.tiny
    if got.shape != expected.shape:
        return f"{what} is {tuple(got.shape)}, not {tuple(expected.shape)}"
    if not got.isfinite().all():
        return f"{what} is not finite"
    over = (got.double() - expected).abs() - bound
    return f"{what} is {float(over.max()):g} over the bound" if over.numel() and over.max() > 0 else None
