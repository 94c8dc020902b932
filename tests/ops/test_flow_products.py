"""FlowProducts against torch's convolutions in float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from test_synflow_scores import ISA, needs_native
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.ops.flow_products import FlowLayer, FlowProducts, Window
from lotterykit.ops.synflow_masks import Counted

pytestmark = needs_native


@pytest.mark.parametrize("isa", ISA)
@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 7, 8, 16, 33, 64, 127])
@pytest.mark.parametrize(("groups", "dtype"), [(1, torch.float32), (3, torch.float64)])
def test_products_and_gradients(isa, lanes, groups, dtype):
    w, mask = torch.randn(6, 5, dtype=dtype), torch.rand(6, 5) < 0.6
    w[~mask] = float("inf")
    products = FlowProducts([FlowLayer(w, mask, groups)], isa=isa)
    x = torch.rand(groups * 5, lanes, dtype=torch.float64, requires_grad=True)
    y = products.product(0, x)
    kept = torch.where(mask, w, 0.0).double().abs()
    wide = torch.block_diag(*kept.split(6 // groups))
    torch.testing.assert_close(y, wide @ x, rtol=1e-13, atol=1e-13)
    g = torch.rand_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(dx, wide.T @ g, rtol=1e-13, atol=1e-13)
    scores = kept * torch.cat([a @ b.T for a, b in zip(g.split(6 // groups), x.split(5), strict=True)])
    products.select([Counted((0,), 7)])
    best = torch.zeros(30, dtype=torch.bool)
    best[scores.detach().flatten().topk(7).indices] = True
    assert torch.equal(products.masks()[0].flatten(), best)
    assert products.kept() == [7]


@pytest.mark.parametrize("isa", ISA)
def test_a_window_is_a_convolution(isa):
    w, image = torch.randn(4, 3, 2, 3), torch.rand(1, 3, 6, 9, dtype=torch.float64)
    places = torch.arange(3)[:, None, None] * 54 + torch.arange(2)[:, None] * 9 + torch.arange(3)
    window = Window(places.flatten().int(), 0, 48)
    x = torch.cat([image.flatten(), torch.zeros(8, dtype=torch.float64)]).requires_grad_()
    y = FlowProducts([FlowLayer(w, None)], isa=isa).product(0, x, window)
    found = y[:, :45].unflatten(1, (5, 9))[:, :, :7]
    leaf = image.clone().requires_grad_()
    expected = F.conv2d(leaf, w.double().abs())[0]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    g = torch.rand_like(expected)
    (dx,), (want,) = torch.autograd.grad(found, x, g), torch.autograd.grad(expected, leaf, g)
    torch.testing.assert_close(dx[:162], want.flatten(), rtol=1e-13, atol=1e-13)


def test_a_layer_that_no_output_needs_scores_nothing():
    products = FlowProducts([FlowLayer(torch.ones(2, 2), None), FlowLayer(torch.ones(1, 2), None)])
    x = torch.ones(2, 1, dtype=torch.float64)
    products.product(0, x)
    products.product(1, x).sum().backward()
    assert products.used == {0, 1}
    products.select([Counted((0, 1), 2)])
    assert products.kept() == [0, 2]


def test_bad_calls_are_refused():
    with pytest.raises(ArgumentError, match="NaN"):
        FlowProducts([FlowLayer(torch.full((1, 1), float("nan")), None)])
    products = FlowProducts([FlowLayer(torch.ones(2, 3), None)])
    x = torch.ones(3, 2, dtype=torch.float64)
    for bad in (x.float(), x.T, x.flatten()):
        with pytest.raises(ArgumentError, match="layer 0 reads float64"):
            products.product(0, bad)
    places = torch.tensor([0, 1, 2]).int()
    for window in (Window(places[:2], 0, 2), Window(places, 0, 5), Window(places.long(), 0, 2),
                   Window(places - 1, 0, 2), Window(places, 0, 1)):  # fmt: skip
        with pytest.raises(ArgumentError, match="window does not fit"):
            products.product(0, x.flatten(), window)
    products.product(0, x)
    with pytest.raises(ArgumentError, match="twice"):
        products.product(0, x)
    products = FlowProducts([FlowLayer(torch.ones(1, 1), None)])
    with torch.enable_grad():
        products.product(0, torch.full((1, 1), float("inf"), dtype=torch.float64)).sum().backward()
    with pytest.raises(ArgumentError, match="overflow"):
        products.select([Counted((0,), 0)])
