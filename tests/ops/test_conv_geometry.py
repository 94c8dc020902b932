"""The layouts that reach torch's own convolutions. In float32 with AVX-512 these err on some channels-last
images of one channel, and crash on some narrower than their padding, or not, by what lies beside them in
memory: so the layout is what is tested, and the numbers where they are wrong for certain."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lotterykit.ops import dispatch, fixed_threshold, masked_conv2d, threshold_conv2d
from lotterykit.ops.conv_geometry import geometry_of, of_torch
from lotterykit.ops.masked_conv2d import (
    _torch_backward,
    masked_conv2d_dw_op,
    masked_conv2d_dx_op,
    masked_conv2d_op,
)
from lotterykit.ops.threshold_autograd import PRODUCTS

# Images [N, C, H, W], kernel [out, C, kh, kw], stride, padding, dilation: wrong numbers, then a crash, then
# what may be either layout.
TOLD = [
    ((8, 1, 17, 4), (3, 1, 3, 3), (1, 2), (0, 0), (1, 1)),
    ((17, 1, 17, 2), (8, 1, 3, 3), (1, 1), (1, 2), (1, 1)),
    ((8, 9, 8, 1), (1, 9, 4, 1), (1, 2), (1, 1), (1, 2)),
    ((2, 3, 2, 2), (4, 3, 5, 5), (1, 1), (5, 6), (1, 1)),
    ((2, 5, 1, 1), (3, 5, 1, 1), (1, 1), (0, 0), (1, 1)),
    ((2, 4, 6, 6), (3, 4, 3, 3), (1, 1), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("padding", [0, (1, 2), "same"])
def test_images_of_one_channel_convolve_right_in_either_layout(padding):
    """torch's own float32 convolution errs here with AVX-512 where the strides are those of channels-last."""
    stride = (1, 1) if padding == "same" else (1, 2)
    x, weight = torch.randn(8, 17, 4, 1).permute(0, 3, 1, 2), torch.randn(3, 1, 3, 3)
    expected = F.conv2d(x.double(), weight.double(), None, stride, padding)
    images, rest = of_torch(x, geometry_of("test", (3, 3), stride, padding, 1, 1))
    assert images.stride() == (68, 68, 4, 1)
    torch.testing.assert_close(F.conv2d(images, weight, None, *rest), expected.float())
    one, _ = of_torch(x[0], geometry_of("test", (3, 3), 1, 0, 1, 1))
    assert torch.equal(one, x[0])


def last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels-last, whose strides a side of 1 leaves open."""
    n, c, h, w = shape
    return torch.randn(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)


class Layouts(TorchDispatchMode):
    """Notes what torch's convolutions are handed that they may take for channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.channels_last = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            self.calls += 1
            operands = args[1:3] if name == "convolution_backward" else args[:2]  # these two decide it
            self.channels_last += [(name, t.shape, t.stride()) for t in operands if maybe_last(t)]
        return func(*args, **(kwargs or {}))


def maybe_last(images: Tensor) -> bool:
    plain = torch.empty(images.shape).stride()
    return images.stride() != plain and images.is_contiguous(memory_format=torch.channels_last)


def layer(op: str, weight: Tensor):
    if op == "masked_conv2d":
        mask = torch.rand(weight.shape) < 0.7
        return lambda x, w, options: masked_conv2d(x, w, mask, **options), mask
    scores = torch.rand(weight.shape).to(weight.dtype)
    half = fixed_threshold(0.3)
    return lambda x, w, options: threshold_conv2d(x, w, scores, half, **options), scores >= 0.3


WAYS = [("masked_conv2d", "reference")] + [
    ("threshold_conv2d", backend)
    for backend in PRODUCTS
    if backend == "reference" or (backend == "cpu" and dispatch.missing("cpu") is None)
]


@pytest.mark.parametrize(("op", "backend"), WAYS)
@pytest.mark.parametrize("told", TOLD)
def test_torchs_convolutions_never_see_channels_last_on_the_cpu(told, op, backend):
    shape, kernel, stride, padding, dilation = told
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    x, weight = last(*shape).requires_grad_(True), last(*kernel).requires_grad_(True)
    run, mask = layer(op, weight)
    wide = [t.detach().double().contiguous().requires_grad_(True) for t in (x, weight)]
    expected = F.conv2d(wide[0], torch.where(mask, wide[1], 0.0), **options)
    g = last(*expected.shape)
    want = torch.autograd.grad(expected, wide, g.double())
    with dispatch.use_backend(backend, ops=[op]), Layouts() as seen:
        y = run(x, weight, options)
        found = torch.autograd.grad(y, (x, weight), g)
    assert seen.calls >= (1 if backend == "cpu" else 2)  # the gradient of few kept weights is native
    assert seen.channels_last == []
    torch.testing.assert_close(y, expected.float())
    for got, exact in zip(found, want, strict=True):
        torch.testing.assert_close(got, exact.float(), rtol=1e-4, atol=1e-4)
    if not x.is_contiguous():
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("told", TOLD)
def test_nor_do_they_behind_the_custom_ops(told):
    shape, kernel, stride, padding, dilation = told
    geometry = geometry_of("test", kernel[2:], stride, padding, dilation, 1)
    x, weight, mask = last(*shape), last(*kernel), torch.rand(kernel) < 0.7
    wide = x.double().contiguous(), weight.double().contiguous(), mask
    y = masked_conv2d_op(x, weight, mask, None, geometry)
    torch.testing.assert_close(y, masked_conv2d_op(*wide, None, geometry).float())
    g = last(*y.shape)
    with Layouts() as seen:
        for which, other in ((0, weight), (1, last(*kernel))):
            _torch_backward(g, x, other, geometry, which)
    assert seen.calls == 2
    assert seen.channels_last == []
    dx = masked_conv2d_dx_op(g, weight, mask, list(shape), geometry)
    wide_g = g.double().contiguous()
    exact = masked_conv2d_dx_op(wide_g, *wide[1:], list(shape), geometry)
    torch.testing.assert_close(dx, exact.float(), rtol=1e-4, atol=1e-4)
    dw = masked_conv2d_dw_op(g, x, mask, geometry)
    exact = masked_conv2d_dw_op(wide_g, wide[0], mask, geometry)
    torch.testing.assert_close(dw, exact.float(), rtol=1e-4, atol=1e-4)
