import math

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.masked_linear import (
    call_of,
    masked_linear,
    masked_linear_dw_op,
    masked_linear_dx_op,
    masked_linear_op,
    masked_linear_reference,
    sample_inputs,
)

SAMPLES = len(sample_inputs())


def oracle_and_bound(x, weight, mask, bias, eps):
    """float64 result and goals.md R1's bound (nnz_row + 1) * eps * sum |products|."""
    x, kept = x.double(), torch.where(mask, weight.double(), 0.0)
    bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    magnitude = F.linear(x.abs(), kept.abs(), bias.abs())
    return F.linear(x, kept, bias), (mask.sum(1) + 2) * eps * magnitude


@pytest.mark.parametrize("case", range(500))
def test_reference_against_float64(case):
    rows, n_in, n_out = (int(torch.randint(0, 40, ())) for _ in range(3))
    density = float(torch.rand(()))
    x, weight = torch.randn(rows, n_in), torch.randn(n_out, n_in)
    mask = torch.rand(n_out, n_in) < density
    bias = torch.randn(n_out) if case % 2 else None
    expected, bound = oracle_and_bound(x, weight, mask, bias, torch.finfo(torch.float32).eps)
    assert ((masked_linear(x, weight, mask, bias) - expected).abs() <= bound).all()


@pytest.mark.parametrize("number", range(SAMPLES))
def test_ops_equal_the_reference(number):
    x, weight, mask, bias = sample_inputs(seed=1)[number]
    y = masked_linear_reference(x, weight, mask, bias)
    torch.testing.assert_close(masked_linear_op(x, weight, mask, bias), y)
    g, kept = torch.randn_like(y), torch.where(mask, weight, 0.0)
    torch.testing.assert_close(masked_linear_dx_op(g, weight, mask), g @ kept)
    rows = math.prod(x.shape[:-1])
    product = g.reshape(rows, len(weight)).T @ x.reshape(rows, weight.shape[1])
    torch.testing.assert_close(masked_linear_dw_op(g, x, mask), torch.where(mask, product, 0.0))


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    x, weight, mask, bias = sample_inputs(seed=2, requires_grad=True)[number]
    torch.library.opcheck(masked_linear_op, (x, weight, mask, bias))
    g = torch.randn(*x.shape[:-1], len(weight), dtype=x.dtype, requires_grad=True)
    torch.library.opcheck(masked_linear_dx_op, (g, weight, mask))
    torch.library.opcheck(masked_linear_dw_op, (g, x, mask))


@pytest.mark.parametrize("number", range(SAMPLES))
@pytest.mark.parametrize("function", [masked_linear, masked_linear_op], ids=["public", "op"])
def test_gradients(function, number):
    x, weight, mask, bias = sample_inputs(seed=3, requires_grad=True)[number]
    inputs = (x, weight) if bias is None else (x, weight, bias)

    def run(x, weight, bias=None):
        return function(x, weight, mask, bias)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_pruned_weights_may_hold_anything_and_get_no_gradient():
    mask = torch.rand(5, 6) < 0.5
    weight = torch.where(mask, torch.randn(5, 6), torch.tensor(float("nan"))).requires_grad_(True)
    x = torch.randn(3, 6, requires_grad=True)
    for function in (masked_linear, masked_linear_op):
        y = function(x, weight, mask, None)
        assert y.isfinite().all()
        dx, dw = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.isfinite().all()
        assert (dw[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_reference_dtypes(dtype):
    for x, weight, mask, bias in sample_inputs(dtype=dtype):
        assert masked_linear(x, weight, mask, bias).dtype == dtype


def test_autocast_casts_like_linear():
    layer, mask = torch.nn.Linear(6, 5), torch.rand(5, 6) < 0.5
    x = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(x, layer.weight, mask, layer.bias)
        assert y.dtype == layer(x).dtype == torch.bfloat16
        assert masked_linear(x.double(), layer.weight.double(), mask).dtype == torch.float64
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_vmap_and_grad_transforms():
    x, mask = torch.randn(4, 3, 6), torch.rand(4, 5, 6) < 0.5
    weight = torch.randn(4, 5, 6)

    def loss(weight, x, mask):
        return masked_linear(x, weight, mask).square().sum()

    for transformed in (
        vmap(grad(loss)),
        torch.compile(vmap(grad(loss)), fullgraph=True, backend="aot_eager"),
    ):
        got = transformed(weight, x, mask)
        for r in range(4):
            torch.testing.assert_close(got[r], grad(loss)(weight[r], x[r], mask[r]))
    with dispatch.use_backend("triton"), pytest.raises(BackendError, match=r"inside torch\.func"):
        vmap(masked_linear)(x, weight, mask)


def test_functional_call_with_other_weights():
    from lotterykit.nn.masked import MaskedLinear

    layer = MaskedLinear(4, 3)
    layer.weight_mask[0] = False
    weights = {"weight": torch.randn(2, 3, 4), "bias": torch.randn(2, 3)}
    out = vmap(lambda w, x: functional_call(layer, w, x), (0, None))(weights, torch.randn(5, 4))
    torch.testing.assert_close(out[:, :, 0], weights["bias"][:, :1].expand(2, 5))


def test_compile_fullgraph():
    x, weight, mask, bias = sample_inputs(dtype=torch.float32, requires_grad=True)[0]
    compiled = torch.compile(lambda *a: masked_linear(*a).relu(), fullgraph=True)
    y, expected = compiled(x, weight, mask, bias), masked_linear(x, weight, mask, bias).relu()
    torch.testing.assert_close(y, expected)
    for got, want in zip(
        torch.autograd.grad(y.sum(), (x, weight, bias)),
        torch.autograd.grad(expected.sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    mask.logical_not_()
    torch.testing.assert_close(compiled(x, weight, mask, bias), masked_linear(x, weight, mask, bias).relu())


def test_repeats_are_bitwise_equal():
    x, weight, mask = torch.randn(64, 100), torch.randn(100, 100), torch.rand(100, 100) < 0.1
    first = masked_linear(x, weight, mask)
    assert all(torch.equal(masked_linear(x, weight, mask), first) for _ in range(100))


def test_call_knows_the_density_and_forcing_an_absent_backend_says_why():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, 0] = True
    args = (torch.randn(2, 5), torch.randn(4, 5), mask)
    assert call_of(*args).density == 1 / 20
    assert "reference: chosen" in dispatch.explain("masked_linear", *args)
    with dispatch.use_backend("cuda"), pytest.raises(BackendError, match="cannot serve"):
        masked_linear(*args)


def test_meta_tensors_give_shapes():
    x, weight, mask, bias = sample_inputs(device="meta")[1]
    assert masked_linear(x, weight, mask, bias).shape == (2, 3, 2)
    assert masked_linear(x, weight, mask, bias).device.type == "meta"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 4)}, r"x must be \[\.\.\., 5\], got \(2, 4\)"),
        ({"x": torch.tensor(1.0)}, r"x must be"),
        ({"x": torch.ones(2, 5, dtype=torch.int64)}, "floating dtype"),
        ({"x": torch.randn(2, 5).double()}, "float64 and torch.float32"),
        ({"weight": torch.randn(5)}, r"both be \[out, in\]"),
        ({"mask": torch.ones(5, 4, dtype=torch.bool)}, r"\(4, 5\) and \(5, 4\)"),
        ({"mask": torch.ones(4, 5)}, "mask must be bool"),
        ({"mask": torch.ones(4, 5, dtype=torch.bool, device="meta")}, "one device, got cpu, cpu and meta"),
        ({"bias": torch.randn(5)}, r"bias must be \[4\]"),
        ({"bias": torch.randn(4).double()}, "float64"),
    ],
)
def test_bad_arguments(change, words):
    args = {"x": torch.randn(2, 5), "weight": torch.randn(4, 5), "mask": torch.ones(4, 5, dtype=torch.bool)}
    with pytest.raises(ArgumentError, match=words):
        masked_linear(**(args | change))
