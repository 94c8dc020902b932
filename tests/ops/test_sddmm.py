"""sddmm against a float64 dense product, on every backend and instruction set, and its gradients."""

from __future__ import annotations

import importlib
import time

import pytest
import torch
from sparse_cases import cases, sampled_within_bound
from torch.library import opcheck

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch, sddmm
from lotterykit.ops.csr import CSR
from lotterykit.ops.sddmm import call_of, sample_inputs, sddmm_cpu, sddmm_reference

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []
SAMPLES = len(sample_inputs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_five_hundred_cases_keep_the_bound_on_every_implementation(dtype):
    seed = time.time_ns()
    for number, case in enumerate(cases(500, seed, dtype)):
        where = f"seed {seed}, case {number}"
        assert sampled_within_bound(case, sddmm_reference(case.g, case.x, case.csr.tensors)), where
        for isa in ISA:
            dvalues = sddmm_cpu(case.g, case.x, case.csr.tensors, isa=isa)
            assert sampled_within_bound(case, dvalues), (where, isa)
        assert sampled_within_bound(case, sddmm(case.g, case.x, case.csr)), where


@needs_native
@pytest.mark.parametrize("density", [0.01, 0.1])
def test_results_do_not_depend_on_threads_or_repeats(density):
    """Bitwise; over instruction sets only within rounding, as they add in other orders and fuse or not."""
    csr = CSR.from_mask(torch.rand(1100, 900) < density)
    g, x = torch.randn(333, 1100), torch.randn(333, 900)
    before = torch.get_num_threads()
    try:
        for isa in ISA:
            results = []
            for threads in (1, 2, 3, 2, 1):
                torch.set_num_threads(threads)
                results.append(sddmm_cpu(g, x, csr.tensors, isa=isa))
            assert all(torch.equal(results[0], r) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", range(SAMPLES))
def test_gradients_agree_with_finite_differences_twice(number):
    g, x, csr = sample_inputs(seed=2, requires_grad=True)[number]
    assert torch.autograd.gradcheck(lambda g, x: sddmm(g, x, csr), [g, x])
    assert torch.autograd.gradgradcheck(lambda g, x: sddmm(g, x, csr), [g, x])


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    g, x, csr = sample_inputs(seed=3, requires_grad=True)[number]
    opcheck(torch.ops.lotterykit.sddmm, (g, x, csr.tensors))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_masked_means_absent(backend):
    csr = CSR.from_mask(torch.tensor([[True, False], [True, True]]))
    g, x = torch.ones(40, 2), torch.ones(40, 2)
    g[3, 0], x[3, 1] = float("inf"), float("nan")
    with dispatch.use_backend(backend):
        dvalues = sddmm(g, x, csr)
    assert dvalues[0] == float("inf")
    assert dvalues[1] == 40.0
    assert dvalues[2].isnan()


def test_bad_arguments_are_refused():
    csr = CSR.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
    g, x = torch.ones(4, 2), torch.ones(4, 3)
    for arguments, message in [
        ((g, x[:2], csr), "leading dimensions"),
        ((g, x.double(), csr), "dtype"),
        ((x, x, csr), r"g must be \[..., 2\]"),
        ((g, g, csr), r"x must be \[..., 3\]"),
        ((g.int(), x.int(), csr), "floating"),
        ((g, x, None), "must be a CSR, got NoneType"),
        ((g.to("meta"), x, csr), "on meta"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            sddmm(*arguments)


def test_call_of_knows_the_density_from_nnz():
    g, x, csr = sample_inputs(dtype=torch.float32)[0]
    assert call_of(g, x, csr) == dispatch.Call("sddmm", "cpu", torch.float32, csr.density)
    assert "chosen" in dispatch.explain("sddmm", g, x, csr)
