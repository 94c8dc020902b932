import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.nn.masked import MaskedConv1d, MaskedConv2d
from lotterykit.ops import dispatch
from lotterykit.ops.conv_geometry import geometry_of
from lotterykit.ops.formats import bit_mask, unpack_bits
from lotterykit.ops.masked_conv2d import (
    call_of,
    masked_conv1d,
    masked_conv2d,
    masked_conv2d_dw_op,
    masked_conv2d_dx_op,
    masked_conv2d_op,
    sample_inputs,
)

SAMPLES = len(sample_inputs())


def raw(arguments, options):
    """Arguments of the custom op."""
    x, weight, mask, bias = arguments
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    geometry = geometry_of("test", tuple(weight.shape[2:]), *options.values())
    return (x if x.dim() == 4 else x[None], weight, mask, bias, geometry)


@pytest.mark.parametrize("number", range(SAMPLES))
def test_equals_a_convolution_of_the_masked_weight(number):
    arguments, options = sample_inputs(dtype=torch.float32, seed=1, requires_grad=True)[number]
    x, weight, mask, bias = arguments
    inputs = [t for t in (x, weight, bias) if t is not None]
    expected = F.conv2d(x.double(), torch.where(mask, weight, 0.0).double(), None, **options)
    if bias is not None:
        expected = expected + bias.double()[:, None, None]
    g = torch.randn(expected.shape)
    want = torch.autograd.grad(expected, inputs, g.double())
    op = masked_conv2d_op(*raw(arguments, options))
    for y in (masked_conv2d(*arguments, **options), op if x.dim() == 4 else op[0]):
        torch.testing.assert_close(y, expected.float())
        for a, b in zip(torch.autograd.grad(y, inputs, g), want, strict=True):
            torch.testing.assert_close(a, b.float())


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    sample = sample_inputs(seed=2, requires_grad=True)[number]
    x, weight, mask, bias, geometry = raw(*sample)
    torch.library.opcheck(masked_conv2d_op, (x, weight, mask, bias, geometry))
    g = torch.randn_like(masked_conv2d_op(x, weight, mask, bias, geometry)).requires_grad_(True)
    torch.library.opcheck(masked_conv2d_dx_op, (g, weight, mask, list(x.shape), geometry))
    torch.library.opcheck(masked_conv2d_dw_op, (g, x, mask, geometry))


@pytest.mark.parametrize("number", range(SAMPLES))
@pytest.mark.parametrize("which", ["public", "op"])
def test_gradients(which, number):
    arguments, options = sample_inputs(seed=3, requires_grad=True)[number]
    x, weight, mask, bias = arguments
    inputs = (x, weight) if bias is None else (x, weight, bias)

    def run(x, weight, bias=None):
        if which == "public":
            return masked_conv2d(x, weight, mask, bias, **options)
        return masked_conv2d_op(*raw((x, weight, mask, bias), options))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_pruned_weights_may_hold_anything_and_get_no_gradient():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    weight = torch.where(mask, torch.randn(4, 3, 3, 3), torch.tensor(float("nan"))).requires_grad_(True)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    geometry = geometry_of("test", (3, 3), 1, 0, 1, 1)
    for y in (masked_conv2d(x, weight, mask), masked_conv2d_op(x, weight, mask, None, geometry)):
        dx, dw = torch.autograd.grad(y.sum(), (x, weight))
        assert y.isfinite().all()
        assert dx.isfinite().all()
        assert (dw[~mask] == 0).all()


@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_dimension(padding, groups):
    stride = 1 if padding == "same" else 2
    options = {"padding": padding, "stride": stride, "dilation": 2, "groups": groups}
    x, weight, bias = torch.randn(3, 4, 11), torch.randn(6, 4 // groups, 3), torch.randn(6)
    mask = torch.rand(weight.shape) < 0.5
    expected = F.conv1d(x, torch.where(mask, weight, 0.0), bias, **options)
    torch.testing.assert_close(masked_conv1d(x, weight, mask, bias, **options), expected)
    torch.testing.assert_close(masked_conv1d(x[0], weight, mask, bias, **options), expected[0])


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, "same", 0])
@pytest.mark.parametrize("layer", [MaskedConv1d, MaskedConv2d])
def test_layers_pad_as_torch_pads(layer, padding, mode):
    made = layer(2, 3, 3, padding=padding, padding_mode=mode)
    made.weight_mask.bernoulli_(0.5)
    x = torch.randn(2, 2, *[7] * (made.weight.dim() - 2))
    plain = made._conv_forward(x, made.kept_weight(), made.bias)
    torch.testing.assert_close(made(x), plain)


def test_bits_go_by_tap_then_input_channel():
    mask = torch.rand(5, 11, 2, 3) < 0.4
    bits = bit_mask(mask).bits
    assert bits.shape == (5, 2, 3, 2)
    torch.testing.assert_close(unpack_bits(bits.view(30, 2), 11).view(5, 2, 3, 11).movedim(-1, 1), mask)


def test_compile_and_transforms():
    (x, weight, mask, bias), options = sample_inputs(dtype=torch.float32, requires_grad=True)[0]
    compiled = torch.compile(lambda *a: masked_conv2d(*a, **options).relu(), fullgraph=True)
    y, expected = compiled(x, weight, mask, bias), masked_conv2d(x, weight, mask, bias, **options).relu()
    torch.testing.assert_close(y, expected)
    for got, want in zip(
        torch.autograd.grad(y.sum(), (x, weight, bias)),
        torch.autograd.grad(expected.sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    weights = torch.randn(3, *weight.shape)

    def loss(weight):
        return masked_conv2d(x.detach(), weight, mask, **options).square().sum()

    got = vmap(grad(loss))(weights)
    for r in range(3):
        torch.testing.assert_close(got[r], grad(loss)(weights[r]))
    with dispatch.use_backend("triton"), pytest.raises(BackendError, match=r"inside torch\.func"):
        vmap(loss)(weights)


def test_autocast_casts_like_conv2d():
    layer, mask = torch.nn.Conv2d(2, 3, 3), torch.rand(3, 2, 3, 3) < 0.5
    x = torch.randn(1, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_conv2d(x, layer.weight, mask, layer.bias)
        assert y.dtype == layer(x).dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_explain_and_density():
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    mask[0] = True
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3)
    assert call_of(x, weight, mask, stride=2).density == 0.5
    assert "reference: chosen" in dispatch.explain("masked_conv2d", x, weight, mask, stride=2)
    with dispatch.use_backend("triton"), pytest.raises(BackendError, match="cannot serve"):
        masked_conv2d(x, weight, mask)


X, W, M = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3), torch.ones(2, 3, 3, 3, dtype=torch.bool)
BAD = {
    "no tensor": (lambda: masked_conv2d([1.0], W, M), "x must be a tensor, got list"),
    "mask of another shape": (lambda: masked_conv2d(X, W, M[:1]), r"must both be \[out"),
    "mask of numbers": (lambda: masked_conv2d(X, W, W), "mask must be bool"),
    "mask elsewhere": (lambda: masked_conv2d(X, W, M.to("meta")), "mask must be bool .* on cpu"),
    "dtypes": (lambda: masked_conv2d(X.double(), W, M), "share a floating dtype"),
    "channels": (lambda: masked_conv2d(X[:, :2], W, M), r"x must be \[N, 3, H, W\]"),
    "matrix": (lambda: masked_conv2d(X[0, 0], W, M), r"x must be \[N, in, H, W\]"),
    "groups": (lambda: masked_conv2d(X, W, M, groups=4), "multiple of groups"),
    "stride": (lambda: masked_conv2d(X, W, M, stride=0), "stride must be an int of at least 1"),
    "padding": (lambda: masked_conv2d(X, W, M, padding="round"), "padding must be ints"),
    "too small": (lambda: masked_conv2d(X[..., :2], W, M), "must not be smaller than the dilated kernel"),
    "bias": (lambda: masked_conv2d(X, W, M, torch.ones(3)), r"bias must be \[2\]"),
    "one dimension": (lambda: masked_conv1d(X, W[..., 0], M[..., 0]), r"x must be \[N, in, L\]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused(kind):
    call, message = BAD[kind]
    with pytest.raises(ArgumentError, match=message):
        call()
