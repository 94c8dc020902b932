"""The CUDA kernels without a GPU: csrc/cuda on the emulator, through the public functions."""

from __future__ import annotations

import random
import re
import subprocess

import emulated
import pytest
import sanitize
import torch

from lotterykit.errors import ArgumentError
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.topk_mask import topk_mask

pytest.importorskip("setuptools")
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
    return emulated.load(emulated.build(tmp_path_factory.mktemp("emulated"), *compiler))


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
