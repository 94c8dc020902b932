"""The CUDA kernels without a GPU: csrc/cuda on the emulator, through the public functions."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import emulated
import pytest
import sanitize
import torch
from sparse_cases import (
    cases,
    product_within_bound,
    sampled_within_bound,
    transposed_within_bound,
    within_bound,
)

from lotterykit.bench import gpu_checks_sparse
from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import sddmm, spmm
from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import explain, use_backend
from lotterykit.ops.sddmm import sddmm_cuda
from lotterykit.ops.spmm import spmm_cuda
from lotterykit.ops.topk_mask import topk_mask

pytest.importorskip("setuptools")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the emulator is Linux's")
ORDERS = [None, 1, 2]  # first to last, and two random ones


@pytest.fixture(scope="module")
def compiler():
    """The compiler's words and pybind11's headers."""
    setup = sanitize.setup_functions()
    try:
        return setup["find_cxx"](), setup["find_pybind11"]()
    except Exception as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def module(compiler, tmp_path_factory):
    return emulated.load(emulated.build_once(emulated.run_folder(tmp_path_factory), *compiler))


@pytest.fixture(scope="module", params=[(), emulated.ADDRESS], ids=["plain", "address"])
def broken_kernels(compiler, request, tmp_path_factory):
    """emulator_cases.cpp, and whether AddressSanitizer watches it."""
    cxx, watched = compiler[0], bool(request.param)
    if watched and (why := sanitize.unsupported(cxx, request.param)) is not None:
        pytest.skip(why)
    return emulated.build_cases(tmp_path_factory.mktemp("cases"), cxx, request.param), watched


@pytest.mark.parametrize(
    ("case", "seen", "watched"),
    [
        ("right", "right", None),
        ("no-barrier", "the numbers are wrong", None),
        ("unwritten", "NaN", False),
        ("barrier", r"mask ffffffff\n  thread 1 is at a barrier of the block\n", None),
        ("disagree", r"thread 0 is in a collective: __shfl_xor_sync, mask ffffffff\n", None),
        ("mask", "lane 1 is not in its mask 00000001", None),
        ("lanes", "mask ffffffff names lane 31, which the block has not", None),
        ("past-shared", "heap-buffer-overflow", True),
        ("past-static", "global-buffer-overflow|index 64 out of bounds", True),
        ("threads", "invalid configuration argument", None),
        ("grid", "invalid configuration argument", None),
        ("shared", "invalid argument", None),
    ],
)
def test_the_emulator_shows_what_a_gpu_leaves_undefined(broken_kernels, case, seen, watched):
    program, is_watched = broken_kernels
    if watched not in (None, is_watched):
        pytest.skip("the other build shows it")
    with emulated.order(None):
        done = subprocess.run([program, case], capture_output=True, text=True, timeout=60)
    assert re.search(seen, done.stdout + done.stderr), (done.stdout, done.stderr)
    assert (done.returncode == 0) == (case in ("right", "unwritten"))


@pytest.fixture(params=ORDERS)
def cuda(module, request):
    """The backend "cuda" forced, its threads and blocks in each order."""
    with emulated.installed(module), emulated.order(request.param), use_backend("cuda"):
        yield module


def score_sets(count: int):
    for case in range(count):
        sizes = [int(torch.randint(0, 20_000, ())) for _ in range(int(torch.randint(1, 5, ())))]
        dtype = torch.float64 if case % 3 == 2 else torch.float32
        scores = [torch.randn(size, dtype=dtype) for size in sizes]
        if case % 2:
            scores = [s.round() * (torch.rand_like(s) < 0.3) for s in scores]
        within = [torch.rand(s.shape) < 0.6 for s in scores] if case % 4 == 1 else None
        yield scores, within


def test_topk_mask_is_that_of_the_reference(cuda):
    for case, (scores, within) in enumerate(score_sets(4)):
        most = sum(int(t.sum()) for t in within) if within else sum(s.numel() for s in scores)
        for k in (0, most, random.randint(0, most)):
            got = topk_mask(scores, k=k, seed=case, within=within)
            with use_backend("reference"):
                want = topk_mask(scores, k=k, seed=case, within=within)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_topk_mask_refuses_nan_and_too_many(cuda):
    scores = [torch.randn(10), torch.randn(700)]
    scores[1][577] = float("nan")
    with pytest.raises(ArgumentError, match=r"scores\[1\] holds NaN at flat index 577"):
        topk_mask(scores, k=3)
    with pytest.raises(ArgumentError, match="only 0 compete"):
        topk_mask(scores, k=3, within=[torch.zeros(s.shape, dtype=torch.bool) for s in scores])


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF = float("inf")
WAYS = ["auto", "slabs", "gather"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_sparse_products_keep_the_bound(cuda, dtype, way):
    seed = random.randrange(2**31)
    for number, case in enumerate(cases(13, seed, dtype)):
        where = f"seed {seed}, case {number}"
        structure = case.csr.tensors
        y = spmm_cuda(case.x, case.values, structure, case.bias, case.relu, way=way)
        assert product_within_bound(case, y), where
        dx = spmm_cuda(case.g, case.values, structure, None, False, True, way=way)
        assert transposed_within_bound(case, dx), where
        assert sampled_within_bound(case, sddmm_cuda(case.g, case.x, structure, way=way)), where


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS[1:])
def test_many_slabs_row_sets_and_tiles(cuda, dtype, way):
    """Three slabs of columns, two blocks of rows, tiles in several parts of the batch; both sizes of
    blocks."""
    csr = CSR.from_mask(torch.rand(1100, 1700) < torch.rand(1100, 1) * 0.01)
    x, g = torch.randn(140, 1700).to(dtype), torch.randn(140, 1100).to(dtype)
    values, bias = torch.randn(csr.nnz).to(dtype), torch.randn(1100).to(dtype)
    wide = csr.scatter(values.double())
    y = spmm_cuda(x, values, csr.tensors, bias, way=way)
    size = x.double().abs() @ wide.abs().T + bias.double().abs()
    terms = csr.row_offsets.diff() + 1
    assert within_bound(y, x.double() @ wide.T + bias.double(), terms, size)
    dx = spmm_cuda(g, values, csr.tensors, None, False, True, way=way)
    terms = csr.column_offsets.diff()
    assert within_bound(dx, g.double() @ wide, terms, g.double().abs() @ wide.abs())
    dvalues = sddmm_cuda(g, x, csr.tensors, way=way)
    size = csr.gather(g.double().abs().T @ x.double().abs())
    assert within_bound(dvalues, csr.gather(g.double().T @ x.double()), 140, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_are_those_of_the_dense_layer(cuda, dtype, activation):
    """Through dispatch and autograd: forward, dx and dvalues by the kernels."""
    csr = CSR.from_mask(torch.rand(70, 90) < 0.1)
    tensors = [torch.randn(35, 90), torch.randn(csr.nnz), torch.randn(70)]
    tracked = [t.to(dtype).requires_grad_() for t in tensors]
    wide = [t.detach().double().requires_grad_() for t in tracked]
    g = torch.randn(35, 70).to(dtype)
    dense = torch.nn.functional.linear(wide[0], csr.scatter(wide[1]), wide[2])
    expected = torch.autograd.grad(dense.relu() if activation else dense, wide, g.double())
    for create_graph in (False, True):
        y = spmm(*tracked[:2], csr, tracked[2], activation)
        got = torch.autograd.grad(y, tracked, g, create_graph=create_graph)
        rough = 2e-2 if dtype == torch.float16 else 1e-4
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=rough, atol=rough)
    assert "cuda: chosen" in explain("spmm", *tracked[:2], csr)


def test_gradients_of_gradients_agree_with_finite_differences(cuda):
    csr = CSR.from_mask(torch.rand(4, 5) < 0.5)
    x, values = torch.randn(3, 5, dtype=torch.float64), torch.randn(csr.nnz, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, values)]
    assert torch.autograd.gradcheck(lambda x, v: spmm(x, v, csr, None, "relu"), inputs)
    assert torch.autograd.gradgradcheck(lambda x, v: spmm(x, v, csr), inputs)
    g = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, x: sddmm(g, x, csr), [g, x])


@pytest.mark.parametrize("kibibytes", [163, 99, 64])
def test_devices_with_less_shared_memory_take_smaller_slabs(module, monkeypatch, kibibytes):
    """Those of compute capability 8.0, 8.6 and 7.5 for a block."""
    monkeypatch.setenv("LOTTERYKIT_EMULATED_SHARED", str(kibibytes << 10))
    with emulated.installed(module):
        for dtype in (torch.float32, torch.bfloat16):
            csr = CSR.from_mask(torch.rand(300, 1000) < 0.02)
            x, g = torch.randn(200, 1000).to(dtype), torch.randn(200, 300).to(dtype)
            values = torch.randn(csr.nnz).to(dtype)
            wide = csr.scatter(values.double())
            y = spmm_cuda(x, values, csr.tensors, way="slabs")
            terms = csr.row_offsets.diff()
            assert within_bound(y, x.double() @ wide.T, terms, x.double().abs() @ wide.T.abs())
            size = csr.gather(g.double().abs().T @ x.double().abs())
            dvalues = sddmm_cuda(g, x, csr.tensors, way="slabs")
            assert within_bound(dvalues, csr.gather(g.double().T @ x.double()), 200, size)
    monkeypatch.setenv("LOTTERYKIT_EMULATED_SHARED", "4096")
    with emulated.installed(module), pytest.raises(RuntimeError, match="too little shared memory"):
        spmm_cuda(x, values, csr.tensors, way="slabs")


@pytest.mark.parametrize("way", WAYS[1:])
def test_masked_means_absent_and_relu_keeps_nan(cuda, way):
    csr = CSR.from_mask(torch.tensor([[True, False, True], [False, True, False], [False, False, False]]))
    x = torch.ones(40, 3)
    x[3, 1], x[4, 0] = INF, float("nan")
    y = spmm_cuda(
        x, torch.tensor([1.0, 2.0, 3.0]), csr.tensors, torch.tensor([0.0, -9.0, 1.0]), True, way=way
    )
    clean = torch.tensor([3.0, 0.0, 1.0]).repeat(40, 1)
    clean[3, 1], clean[4, 0] = INF, float("nan")
    assert torch.equal(y.nan_to_num(nan=7.0), clean.nan_to_num(nan=7.0))
    g = torch.ones(40, 3)
    g[5, 2] = float("nan")
    dvalues = sddmm_cuda(g, x.nan_to_num(nan=1.0, posinf=INF), csr.tensors, way=way)
    assert dvalues.tolist() == [40.0, 40.0, INF]


@pytest.mark.parametrize("way", WAYS[1:])
def test_any_order_of_threads_gives_the_same_bits(module, way):
    csr = CSR.from_mask(torch.rand(200, 900) < 0.02)
    x, g, values = torch.randn(70, 900), torch.randn(70, 200), torch.randn(csr.nnz)
    results = []
    for seed in ORDERS:
        with emulated.installed(module), emulated.order(seed):
            y = spmm_cuda(x, values, csr.tensors, way=way)
            results.append([y, spmm_cuda(g, values, csr.tensors, None, False, True, way=way)])
            results[-1].append(sddmm_cuda(g, x, csr.tensors, way=way))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_calls_of_the_bindings_are_refused(cuda):
    places = (0, 0, 1, 1, 0)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        cuda.spmm_workspace("int8", 1, places, False)
    with pytest.raises(ValueError, match="nnz must lie in"):
        cuda.sddmm_workspace("float32", 1, (0, 0, -1, 1, 0))
    with pytest.raises(ValueError, match="way 'fast' is unknown"):
        cuda.spmm("float32", 0, 1, places, 0, 0, 0, False, 0, 0, "fast", 0, 0)
    with pytest.raises(ValueError, match="negative batch"):
        cuda.sddmm("float32", 0, 0, -1, places, 0, 0, "auto", 0, 0)
    with pytest.raises(RuntimeError, match="spmm: invalid device ordinal"):
        cuda.spmm("float32", 0, 1, places, 0, 0, 0, False, 0, 0, "auto", 7, 0)
    with pytest.raises(RuntimeError, match="spmm: the batch is too large for one grid"):
        cuda.spmm("float64", 0, 2**50, places, 0, 0, 0, False, 0, 0, "auto", 0, 0)
    wide = (0, 0, 1, 2**31 - 2, 1)
    for call in (
        lambda: cuda.spmm("float32", 0, 1, wide, 0, 0, 0, False, 0, 0, "auto", 0, 0),
        lambda: cuda.sddmm("float32", 0, 0, 1, wide, 0, 0, "auto", 0, 0),
    ):
        with pytest.raises(RuntimeError, match=r"more than 2\^31 - 4096 rows or columns"):
            call()


def test_what_the_kernels_do_not_serve_is_refused(cuda):
    csr = CSR.from_mask(torch.eye(3, dtype=torch.bool))
    x, values = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(
        BackendError, match="needs dtype float32, float64, float16, bfloat16, got float8_e5m2"
    ):
        spmm(x.to(torch.float8_e5m2), values.to(torch.float8_e5m2), csr)
    with pytest.raises(ArgumentError, match="values is on meta, but the structure on cpu"):
        spmm(x, values.to("meta"), csr)
    with pytest.raises(ArgumentError, match="g is on meta, but the structure on cpu"):
        sddmm(x.to("meta"), x, csr)


def test_the_checks_for_a_gpu_pass_here_and_see_a_broken_kernel(module, monkeypatch):
    monkeypatch.setattr(gpu_checks_sparse, "SHAPES", ((1, 1, 1), (37, 101, 53), (0, 5, 3), (70, 900, 70)))
    with emulated.installed(module):
        assert gpu_checks_sparse.check_spmm(4, device="cpu") == []
        assert gpu_checks_sparse.check_sddmm(4, device="cpu") == []
        real, sampled = gpu_checks_sparse.spmm_cuda, gpu_checks_sparse.sddmm_cuda
        monkeypatch.setattr(gpu_checks_sparse, "spmm_cuda", lambda *a, **k: real(*a, **k) * 1.01)
        monkeypatch.setattr(gpu_checks_sparse, "sddmm_cuda", lambda *a, **k: sampled(*a, **k) * 1.01)
        assert any("y is" in failure for failure in gpu_checks_sparse.check_spmm(4, device="cpu"))
        assert gpu_checks_sparse.check_sddmm(4, device="cpu")


def test_random_calls_give_the_sanitizers_nothing_to_report(compiler, tmp_path, capfd):
    if (why := sanitize.unsupported(compiler[0], emulated.ADDRESS)) is not None:
        pytest.skip(why)
    library = emulated.build(tmp_path, *compiler, emulated.ADDRESS)
    runtimes = {"LD_PRELOAD": sanitize.preloaded(compiler[0]), "ASAN_OPTIONS": "detect_leaks=0"}
    seed = random.randrange(2**31)
    script = sanitize.ROOT / "tests" / "native" / "emulated_fuzz.py"
    command = [sys.executable, str(script), str(library), "--cases", "12", "--seed", str(seed)]
    found = sanitize.reports(command, runtimes)
    out = capfd.readouterr().out
    assert found == 0, f"seed {seed}\n{out}"
    assert "topk_mask: 12 cases" in out
