"""Positions that are alike: maps and gradients of the kept ones are those of all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotterykit.ops import dispatch
from lotterykit.pruning.prune import Pruner
from lotterykit.pruning.repeats import RandomProducts, repeats

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))


def bordered(edge: int, middle: int, channels: int = 2) -> Tensor:
    """`[1, C, n, n]` with `edge` different lines at each border and `middle` equal ones between."""
    lines = torch.cat([torch.arange(edge), torch.full((middle,), edge), torch.arange(edge) + edge + 1])
    values = torch.rand(channels, 2 * edge + 1, 2 * edge + 1, dtype=torch.float64) + 0.1
    return values[:, lines][:, :, lines][None]


@pytest.mark.parametrize("edge", [0, 1, 3])
@pytest.mark.parametrize("middle", [7, 8, 20])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), (1, 1)), ((1, 1), (1, 1)), ((2, 3), (3, 1)), ((5, 1), (1, 2))]
)
def test_the_kept_positions_give_all(edge, middle, kernel, dilation):
    image = bordered(edge, middle)
    found = repeats(image, kernel, dilation)
    if found is None:
        assert middle < 20
        return
    assert found.hold(image)
    weight = torch.rand(4, 2, *kernel, dtype=torch.float64, requires_grad=True)
    full = F.conv2d(image, weight, dilation=dilation)
    few = F.conv2d(found.image(image), weight, dilation=dilation)
    assert few[0, 0].numel() * 2 <= full[0, 0].numel()
    assert torch.allclose(found.output(few[0]), full[0], rtol=1e-12, atol=0)
    g = torch.rand_like(full)
    (expected,) = torch.autograd.grad(full, weight, g)
    (got,) = torch.autograd.grad(found.output(few[0]), weight, g[0])
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)


def test_an_image_of_its_own_is_not_shortened_and_a_changed_one_does_not_hold():
    assert repeats(torch.rand(1, 2, 16, 16, dtype=torch.float64), (3, 3), (1, 1)) is None
    image = bordered(1, 14)
    found = repeats(image, (3, 3), (1, 1))
    image[0, 1, 8, 8] *= 1.001
    assert not found.hold(image)
    image[0, 1, 8, 8] = float("nan")
    assert not found.hold(image)


def test_random_products_keep_apart_what_the_network_keeps_apart():
    products = RandomProducts([torch.empty(6, 2)], [2])
    x = torch.rand(4, 5, dtype=torch.float64)
    x[:, 3] = x[:, 1]
    y = products.product(0, x)
    assert y.shape == (6, 5)
    assert torch.allclose(y[:, 3], y[:, 1], rtol=1e-12, atol=0)
    assert ((y[:, 0] - y[:, 1]).abs() > 1e-9).all()


class Placed(nn.Module):
    """Adds a map of its own: no two positions are alike."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("map", torch.rand(1, 1, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map


def nets() -> dict[str, nn.Module]:
    def conv(*sizes: int, **options: int) -> nn.Conv2d:
        return nn.Conv2d(*sizes, padding=1, **options)

    shifted = nn.BatchNorm2d(8)  # under random weights its ReLU may saturate where the network's does not
    shifted.running_mean.fill_(3.0)
    steep = conv(3, 8, 3)
    nn.init.uniform_(steep.weight, 0.0, 1.0)
    constant = [conv(3, 8, 3), conv(8, 8, 3)]
    for layer in constant:
        nn.init.constant_(layer.weight, 0.1)
    tail = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    return {
        "pooled": nn.Sequential(
            conv(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8, 3), nn.ReLU(), conv(8, 8, 3), *tail
        ),
        "grouped and strided": nn.Sequential(
            conv(3, 8, 3),
            nn.BatchNorm2d(8),
            conv(8, 8, 3, groups=4),
            conv(8, 8, 3, stride=2),
            conv(8, 8, 3),
            *tail,
        ),
        "saturated": nn.Sequential(steep, shifted, nn.ReLU(), conv(8, 8, 3), *tail),
        "placed": nn.Sequential(conv(3, 8, 3), Placed(24), conv(8, 8, 3), *tail),
        "constant": nn.Sequential(*constant, nn.MaxPool2d(2), *tail),
    }


@needs_native
@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("bias", [True, False])
def test_large_maps_give_the_masks_of_autograd(name, bias):
    model = nets()[name].eval()
    example = torch.ones(1, 3, 24, 24)
    options = {"density": 0.2, "rounds": 5, "example_input": example, "options": {"bias": bias}}
    with dispatch.use_backend("reference"):
        stepped = Pruner(copy.deepcopy(model), "synflow", **options)
        for _ in range(5):
            expected = stepped.step()
    found = Pruner(copy.deepcopy(model), "synflow", **options).run()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
