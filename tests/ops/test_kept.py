import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lotterykit.ops import kept as module
from lotterykit.ops.dispatch import use_backend
from lotterykit.ops.kept import kept_by
from lotterykit.ops.masked_linear import masked_linear, masked_linear_reference

OP = "masked_linear"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SPECIAL = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-45])


def drawn(*shape, density=0.5):
    """A mask, and weights of which half are not finite, zero or denormal."""
    mask, weight = torch.rand(shape) < density, torch.randn(shape)
    special = SPECIAL[torch.randint(len(SPECIAL), shape)]
    return mask, torch.where(torch.rand(shape) < 0.5, special, weight)


def same(one, other):
    """Bit for bit, a NaN equal to a NaN; and so the signs of zeros."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.signbit() & ~one.isnan(), other.signbit() & ~other.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (7, 5), (33, 67), (64, 64)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_it_is_where(shape, density, dtype):
    mask, weight = drawn(*shape, density=density)
    weight = weight.to(dtype)
    same(kept_by(OP, mask, dtype)(weight), torch.where(mask, weight, 0.0))
    same(kept_by(OP, mask.T, dtype)(weight.T), torch.where(mask.T, weight.T, 0.0))
    wide_mask, wide = torch.zeros(shape[0], 2 * shape[1], dtype=torch.bool), weight.repeat(1, 2)
    wide_mask[:, ::2] = mask
    same(kept_by(OP, wide_mask[:, ::2], dtype)(wide[:, ::2]), torch.where(mask, wide[:, ::2], 0.0))


def test_what_is_not_finite_reaches_no_pruned_gradient():
    mask, g = drawn(9, 11)
    weight = torch.randn(9, 11, requires_grad=True)
    out = kept_by(OP, mask, weight.dtype)(weight)
    (dw,) = torch.autograd.grad(out, weight, g)
    same(dw, torch.where(mask, g, 0.0))


def test_derivatives_of_every_kind():
    mask = torch.rand(5, 4) < 0.5
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    kept = kept_by(OP, mask, weight.dtype)
    assert torch.autograd.gradcheck(kept, (weight,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda w: kept(w) * w, (weight,))


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.logical_not_(),
        lambda mask: mask.fill_(True),
        lambda mask: mask[1:].zero_(),
        lambda mask: setattr(mask, "data", ~mask),
    ],
)
def test_a_change_of_the_mask_is_seen(change):
    x, weight, mask = torch.randn(3, 5), torch.randn(4, 5), torch.rand(4, 5) < 0.5
    for _ in range(2):
        assert torch.equal(masked_linear(x, weight, mask), masked_linear_reference(x, weight, mask))
    change(mask)
    assert torch.equal(masked_linear(x, weight, mask), masked_linear_reference(x, weight, mask))
    double = x.double(), weight.double()
    assert torch.equal(masked_linear(*double, mask), masked_linear_reference(*double, mask))


def test_a_mask_is_remembered_while_it_lives():
    mask = torch.rand(4, 5) < 0.5
    assert kept_by(OP, mask, torch.float32) is kept_by(OP, mask, torch.float32)
    key = OP, id(mask)
    assert key in module._known
    del mask
    gc.collect()
    assert key not in module._known


def test_a_full_mask_costs_nothing():
    weight = torch.randn(4, 5)
    assert kept_by(OP, torch.ones(4, 5, dtype=torch.bool), weight.dtype)(weight) is weight


def test_where_it_does_not_serve():
    mask = torch.rand(4, 5) < 0.5
    for other in (mask.float(), mask.to("meta")):
        assert kept_by(OP, other, torch.float32) is None
    assert kept_by(OP, mask, torch.int64) is None
    with use_backend("reference"):
        assert kept_by(OP, mask, torch.float32) is None
    with torch.inference_mode():
        assert kept_by(OP, mask.clone(), torch.float32) is None
        assert kept_by(OP, mask, torch.float32) is not None
    weight = torch.randn(4, 5, requires_grad=True)
    kept_by(OP, mask, torch.float32)(weight).sum().backward()  # numbers made in inference mode serve autograd
    assert torch.equal(weight.grad, mask.float())


def test_no_tracer_takes_a_mask_for_a_constant():
    x, weight, mask = torch.randn(3, 5), torch.randn(4, 5), torch.rand(4, 5) < 0.5
    expected, turned = masked_linear(x, weight, mask), masked_linear_reference(x, weight, ~mask)
    kept_by(OP, mask, weight.dtype)
    traced = torch.jit.trace(masked_linear, (x, weight, mask))
    assert torch.equal(traced(x, weight, mask), expected)
    assert torch.equal(traced(x, weight, ~mask), turned)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(t) for t in (x, weight, mask)]
        assert masked_linear(*fake).shape == (3, 4)
    assert torch.equal(masked_linear(x, weight, mask), expected)
