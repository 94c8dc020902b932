"""threshold_linear against a layer masked beforehand, in float64, on every backend, and its gradients."""

from __future__ import annotations

import importlib
import random

import pytest
import torch
from threshold_cases import BACKENDS, expected_gradients, random_scores, random_threshold
from torch.func import grad, vmap
from torch.library import opcheck
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch, fixed_threshold, score_thresholds, threshold_linear
from lotterykit.ops.operands import flat
from lotterykit.ops.threshold import Threshold, kept_mask
from lotterykit.ops.threshold_autograd import threshold_product_backward_op, threshold_product_op
from lotterykit.ops.threshold_linear import (
    call_of,
    sample_inputs,
    threshold_linear_cpu,
    threshold_linear_reference,
)
from lotterykit.ops.threshold_products import gradients_cpu, gradients_reference, product_cpu

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []
SAMPLES = len(sample_inputs())
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cases_keep_the_bound(seed, backend, dtype):
    """goals.md R1: (products of an entry + 1) eps times the sum of their magnitudes; a score's gradient is
    multiplied by W once more."""
    rng, eps = random.Random(seed), torch.finfo(dtype).eps
    for _ in range(100):
        n_out, n_in = (rng.choice([0, 1, 3, 9, 33, 70]) for _ in range(2))
        lead = rng.choice([(), (1,), (17,), (65,), (2, 3), (0,)])
        x, weight = torch.randn(*lead, n_in, dtype=dtype), torch.randn(n_out, n_in, dtype=dtype)
        scores = random_scores(rng, (n_out, n_in), dtype)
        threshold = random_threshold(rng, scores)
        bias = torch.randn(n_out, dtype=dtype) if rng.random() < 0.5 else None
        g = torch.randn(*lead, n_out, dtype=dtype)
        x.requires_grad_(True)
        scores.requires_grad_(True)
        with dispatch.use_backend(backend, ops=["threshold_linear"]):
            y = threshold_linear(x, weight, scores, threshold, bias)
            dx, dscores = torch.autograd.grad(y, (x, scores), g)
        arguments = x, weight, scores, threshold, bias
        wanted = expected_gradients(F.linear, *arguments, g)
        mask = kept_mask(scores, threshold)
        wide = [t.detach().double().abs() for t in (x, weight, g)]
        kept = torch.where(mask, wide[1], 0.0)
        sizes = (
            F.linear(wide[0], kept, None if bias is None else bias.double().abs()) * (mask.sum(1) + 2),
            wide[2] @ kept * (mask.sum(0) + 1),
            flat(wide[2]).T @ flat(wide[0]) * wide[1] * (flat(x).shape[0] + 2),
        )
        for got, want, size in zip((y, dx, dscores), wanted, sizes, strict=True):
            assert got.shape == want.shape
            assert bool(((got.double() - want).abs() <= eps * size).all())


@needs_native
@pytest.mark.parametrize("density", [0.05, 0.6])
def test_every_instruction_set_equals_the_reference(density):
    x, weight, g = (torch.randn(shape, dtype=torch.float64) for shape in ((70, 90), (60, 90), (70, 60)))
    scores = torch.randn(60, 90, dtype=torch.float64)
    (threshold,) = score_thresholds([scores], density=density)
    wants = (True,) * 4
    for isa in ISA:
        y = product_cpu(x, weight, scores, threshold, None, [], isa=isa)
        torch.testing.assert_close(y, threshold_linear_reference(x, weight, scores, threshold))
        found = gradients_cpu(g, x, weight, scores, threshold, [], wants, isa=isa)
        expected = gradients_reference(g, x, weight, scores, threshold, [], wants)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want)
    for dtype in (torch.float32, torch.float64) if ISA else ():
        arguments = [t.to(dtype) for t in (x, weight, scores)]
        assert threshold_linear_cpu(*arguments, threshold).dtype == dtype


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    x, weight, scores, (cut, *rest), bias = sample_inputs(seed=2, requires_grad=True)[number]
    # Two samples are traced forward and backward, which takes seconds; the others only forward.
    cheap = {} if number in (0, 8) else {"test_utils": CHEAP}
    opcheck(threshold_product_op, (x, weight, scores, cut, bias, *rest, []), **cheap)
    g = torch.randn(*x.shape[:-1], len(weight), dtype=x.dtype, requires_grad=True)
    wants = [True, number % 2 == 0, True, number % 3 == 0]
    arguments = g, x, weight, scores, cut, *rest, [], wants
    opcheck(threshold_product_backward_op, arguments, **({} if number == 0 else {"test_utils": CHEAP}))


def by_op(x, weight, scores, threshold, bias):
    cut, *rest = threshold
    return threshold_product_op(x, weight, scores, cut, bias, *rest, [])


@pytest.mark.parametrize("number", range(SAMPLES))
@pytest.mark.parametrize("function", [threshold_linear, by_op], ids=["public", "op"])
def test_gradients_where_they_are_true(function, number):
    """In x, weight and bias the layer is smooth; in the scores the gradient is declared, and linear in g."""
    x, weight, scores, threshold, bias = sample_inputs(seed=3, requires_grad=True)[number]
    fixed = scores.detach()
    inputs = (x, weight) if bias is None else (x, weight, bias)

    def run(x, weight, bias=None):
        return function(x, weight, fixed, threshold, bias)

    assert torch.autograd.gradcheck(run, inputs)
    if number in (0, 2, 6, 8):  # seconds each
        assert torch.autograd.gradgradcheck(run, inputs)

    def slope(x, weight, g):
        y = function(x, weight, scores, threshold, bias)
        return torch.autograd.grad(y, scores, g, create_graph=True)[0]

    g = torch.randn(*x.shape[:-1], len(weight), dtype=x.dtype, requires_grad=True)
    assert torch.autograd.gradcheck(slope, (x, weight, g))


def test_frozen_weights_get_no_gradient_and_nothing_but_operands_is_saved():
    x, weight, scores = torch.randn(4, 6), torch.randn(5, 6), torch.randn(5, 6, requires_grad=True)
    (threshold,) = score_thresholds([scores], density=0.3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = threshold_linear(x, weight, scores, threshold)
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (x, weight, scores, threshold.cut)}
    y.sum().backward()
    assert weight.grad is None
    assert (scores.grad != 0).all()  # the dropped ones too
    y = threshold_linear(x, weight, scores, threshold)
    with torch.no_grad():
        scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pruned_weights_may_hold_anything_in_the_forward_pass(backend):
    scores = torch.randn(20, 30)
    for density in (0.1, 0.7):
        (threshold,) = score_thresholds([scores], density=density)
        weight = torch.where(kept_mask(scores, threshold), torch.randn(20, 30), torch.nan)
        x = torch.randn(9, 30, requires_grad=True)
        with dispatch.use_backend(backend, ops=["threshold_linear"]):
            y = threshold_linear(x, weight, scores, threshold)
            (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.isfinite().all()
        assert dx.isfinite().all()


def test_transforms():
    x, weight, scores = torch.randn(4, 3, 6), torch.randn(5, 6), torch.randn(4, 5, 6).round()
    thresholds = [score_thresholds([s], k=12, seed=1)[0] for s in scores]
    cuts = torch.stack([t.cut for t in thresholds])

    def loss(scores, x, cut):
        return threshold_linear(x, weight, scores, Threshold(cut, True, 1, 0)).square().sum()

    got = vmap(grad(loss))(scores, x, cuts)
    for r in range(4):
        leaf = scores[r].clone().requires_grad_(True)
        y = threshold_linear(x[r], weight, leaf, thresholds[r])
        torch.testing.assert_close(got[r], torch.autograd.grad(y.square().sum(), leaf)[0])
    with dispatch.use_backend("triton"), pytest.raises(BackendError, match=r"inside torch\.func"):
        vmap(loss)(scores, x, cuts)


def test_compile_fullgraph():
    x, weight, bias = torch.randn(3, 6, requires_grad=True), torch.randn(5, 6), torch.randn(5)
    scores = torch.randn(5, 6, requires_grad=True)

    def layer(x, scores):
        (threshold,) = score_thresholds([scores], density=0.3, seed=2)
        return threshold_linear(x, weight, scores, threshold, bias).relu()

    y, expected = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, scores), layer(x, scores)
    torch.testing.assert_close(y, expected)
    got, want = (torch.autograd.grad(out.sum(), (x, scores)) for out in (y, expected))
    torch.testing.assert_close(got, want)


def test_autocast_lowers_all_but_the_scores():
    weight, x = torch.randn(5, 6), torch.randn(3, 6)
    scores = torch.linspace(0.5, 0.5001, 30).view(5, 6).requires_grad_(True)  # one number in bfloat16
    (threshold,) = score_thresholds([scores], k=4)
    with torch.autocast("cpu", torch.bfloat16):
        y = threshold_linear(x, weight, scores, threshold)
    assert y.dtype == torch.bfloat16
    wanted = F.linear(x.bfloat16(), torch.where(kept_mask(scores, threshold), weight, 0.0).bfloat16())
    assert torch.equal(y, wanted)
    y.sum().backward()
    assert scores.grad.dtype == torch.float32


def test_repeats_are_bitwise_equal_and_dispatch_explains():
    x, weight, scores = torch.randn(64, 100), torch.randn(100, 100), torch.randn(100, 100)
    (threshold,) = score_thresholds([scores], density=0.1)
    first = threshold_linear(x, weight, scores, threshold)
    assert all(torch.equal(threshold_linear(x, weight, scores, threshold), first) for _ in range(20))
    assert call_of(x, weight, scores, threshold).op == "threshold_linear"
    assert "chosen" in dispatch.explain("threshold_linear", x, weight, scores, threshold)
    with dispatch.use_backend("cuda"), pytest.raises(BackendError, match="cannot serve"):
        threshold_linear(x, weight, scores, threshold)


HALF = fixed_threshold(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 4)}, r"x must be \[\.\.\., 5\], got \(2, 4\)"),
        ({"x": torch.tensor(1.0)}, r"x must be"),
        ({"x": torch.ones(2, 5, dtype=torch.int64)}, "dense and floating"),
        ({"x": [1.0]}, "x must be a tensor"),
        ({"x": torch.randn(2, 5).double()}, "weight must be torch.float64, got torch.float32"),
        ({"weight": torch.randn(5)}, r"both be \[out, in\]"),
        ({"scores": torch.randn(5, 4)}, r"\(4, 5\) and \(5, 4\)"),
        ({"scores": torch.randn(4, 5).double()}, "scores must be torch.float32"),
        ({"scores": torch.ones(4, 5, dtype=torch.bool)}, "floating"),
        ({"scores": torch.ones(4, 5, device="meta")}, "on cpu, but scores on meta"),
        ({"bias": torch.randn(5)}, r"bias must be \[4\]"),
        ({"threshold": 0.5}, "must be a Threshold, got float"),
        ({"threshold": HALF._replace(cut=torch.zeros(3))}, r"float64 \[2\]"),
        ({"threshold": HALF._replace(cut=0.5)}, "got float"),
        ({"threshold": HALF._replace(cut=HALF.cut.to("meta"))}, "cut is on meta"),
        ({"threshold": HALF._replace(offset=2**32 - 3)}, "offset must lie in"),
        ({"threshold": HALF._replace(seed=-1)}, "seed must be"),
    ],
)
def test_bad_arguments(change, words):
    sound = {"weight": torch.randn(4, 5), "scores": torch.randn(4, 5), "threshold": HALF}
    with pytest.raises(ArgumentError, match=words):
        threshold_linear(**({"x": torch.randn(2, 5)} | sound | change))
