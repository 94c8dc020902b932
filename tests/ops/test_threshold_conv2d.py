"""threshold_conv2d against a convolution masked beforehand, in float64, on every backend."""

from __future__ import annotations

import pytest
import torch
from threshold_cases import BACKENDS, expected_gradients
from torch.library import opcheck
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch, fixed_threshold, score_thresholds, threshold_conv2d
from lotterykit.ops.conv_geometry import geometry_of
from lotterykit.ops.threshold_autograd import threshold_product_backward_op, threshold_product_op
from lotterykit.ops.threshold_conv2d import (
    call_of,
    sample_inputs,
    threshold_conv2d_cpu,
    threshold_conv2d_reference,
)

SAMPLES = len(sample_inputs())
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")
GIVEN = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def images(x):
    return x if x.dim() == 4 else x.unsqueeze(0)


def geometry(weight, options):
    return geometry_of("conv", tuple(weight.shape[2:]), *(GIVEN | options).values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", range(SAMPLES))
def test_value_and_gradients(backend, dtype, number):
    (x, weight, scores, threshold, bias), options = sample_inputs(dtype=dtype, seed=1, requires_grad=True)[
        number
    ]
    with dispatch.use_backend(backend, ops=["threshold_conv2d"]):
        y = threshold_conv2d(x, weight, scores, threshold, bias, **options)
        g = torch.randn_like(y)
        dx, dscores = torch.autograd.grad(y, (x, scores), g)

    def product(x, weight, bias):
        return F.conv2d(x, weight, bias, **options)

    wanted = expected_gradients(product, x, weight, scores, threshold, bias, g)
    for got, want in zip((y, dx, dscores), wanted, strict=True):
        torch.testing.assert_close(got, want.to(dtype))
    if x.dim() == 4 and x.numel() and not x.is_contiguous():
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    (x, weight, scores, (cut, *rest), bias), options = sample_inputs(seed=2, requires_grad=True)[number]
    form = geometry(weight, options)
    x = images(x).detach().requires_grad_(True)
    # One sample is traced forward and backward, which takes seconds; the others only forward.
    cheap = {} if number == 1 else {"test_utils": CHEAP}
    opcheck(threshold_product_op, (x, weight, scores, cut, bias, *rest, form), **cheap)
    g = torch.randn_like(threshold_product_op(x, weight, scores, cut, bias, *rest, form)).requires_grad_(True)
    arguments = g, x, weight, scores, cut, *rest, form, [True] * 4
    opcheck(threshold_product_backward_op, arguments, test_utils=CHEAP)


@pytest.mark.parametrize("number", [1, 6, 8, 9])
@pytest.mark.parametrize("way", ["public", "op"])
def test_gradients_where_they_are_true(way, number):
    (x, weight, scores, threshold, bias), options = sample_inputs(seed=3, requires_grad=True)[number]
    inputs = (x, weight) if bias is None else (x, weight, bias)
    fixed, (cut, *rest) = scores.detach(), threshold

    def run(x, weight, bias=None):
        if way == "public":
            return threshold_conv2d(x, weight, fixed, threshold, bias, **options)
        return threshold_product_op(images(x), weight, fixed, cut, bias, *rest, geometry(weight, options))

    assert torch.autograd.gradcheck(run, inputs)
    if number == 8:  # small enough
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
def test_the_backends_agree_and_dispatch_explains():
    for (x, weight, scores, threshold, bias), options in sample_inputs(seed=4):
        arguments = images(x), weight, scores, threshold, bias, geometry(weight, options)
        torch.testing.assert_close(threshold_conv2d_cpu(*arguments), threshold_conv2d_reference(*arguments))
    assert call_of(x, weight, scores, threshold).op == "threshold_conv2d"
    assert "cpu: chosen" in dispatch.explain("threshold_conv2d", x, weight, scores, threshold)


def test_compile_and_vmap():
    x, weight = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    scores = torch.randn(4, 3, 3, 3, requires_grad=True)

    def layer(x, scores):
        (threshold,) = score_thresholds([scores], density=0.3)
        return threshold_conv2d(x, weight, scores, threshold, padding=1).relu()

    y, expected = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, scores), layer(x, scores)
    torch.testing.assert_close(y, expected)
    got, want = (torch.autograd.grad(out.sum(), (x, scores)) for out in (y, expected))
    torch.testing.assert_close(got, want)
    stacked = torch.rand(3, 4, 3, 3, 3)
    half = fixed_threshold(0.5)
    got = torch.func.vmap(lambda s: threshold_conv2d(x, weight, s, half, padding=1))(stacked)
    for one, s in zip(got, stacked, strict=True):
        torch.testing.assert_close(one, threshold_conv2d(x, weight, s, half, padding=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 4, 5, 5)}, r"x must be \[N, 3, H, W\]"),
        ({"x": torch.randn(5, 5)}, "H and W above 0"),
        ({"x": torch.randn(1, 3, 2, 2)}, "must not be smaller than the dilated kernel"),
        ({"weight": torch.randn(4, 3)}, r"\[out, in / groups, kh, kw\]"),
        ({"scores": torch.randn(4, 3, 3, 2)}, "must both be"),
        ({"bias": torch.randn(3)}, r"bias must be \[4\]"),
        ({"groups": 3}, "a multiple of groups 3"),
        ({"stride": 0}, "stride must be"),
        ({"padding": "sam"}, "'valid' or 'same'"),
        ({"threshold": None}, "must be a Threshold"),
    ],
)
def test_bad_arguments(change, words):
    weight, scores = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    sound = {
        "x": torch.randn(2, 3, 5, 5),
        "weight": weight,
        "scores": scores,
        "threshold": fixed_threshold(0.5),
    }
    with pytest.raises(ArgumentError, match=words):
        threshold_conv2d(**(sound | change))
