import math

import pytest
import torch

from lotterykit.nn.init import INITS, linear_shapes

WIDTHS = [50, 400, 300, 200]


def draw(name, seed=0, widths=WIDTHS):
    return INITS[name](linear_shapes(widths), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(INITS))
def test_shapes_dtype_and_seed(name):
    weights, biases = draw(name)
    assert [tuple(w.shape) for w in weights] == [(400, 50), (300, 400), (200, 300)]
    assert [tuple(b.shape) for b in biases] == [(400,), (300,), (200,)]
    assert all(t.dtype == torch.float64 for t in weights + biases)
    again, other = draw(name), draw(name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(weights, again[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights, other[0], strict=True))


WEIGHT_VARIANCE = {
    "he_scaled": lambda i, o: 2 / i,
    "he_uniform_scaled": lambda i, o: 2 / i,
    "glorot_normal": lambda i, o: 2 / (i + o),
    "kaiming_normal": lambda i, o: 2 / i,
    "signed_constant": lambda i, o: 2 / i,
}


@pytest.mark.parametrize("name", list(INITS))
def test_weight_variance(name):
    for weight in draw(name)[0]:
        o, i = weight.shape
        n = weight.numel()  # a sample variance of n values is within 5 sqrt(2 / n) of the truth
        assert float(weight.square().mean()) == pytest.approx(
            WEIGHT_VARIANCE[name](i, o), rel=5 * math.sqrt(2 / n)
        )
        assert abs(float(weight.mean())) < 5 * math.sqrt(WEIGHT_VARIANCE[name](i, o) / n)


def test_he_scaled_biases_have_the_product_as_variance():
    biases = torch.stack([torch.cat([b[:200] for b in draw("he_scaled", seed)[1]]) for seed in range(30)])
    for layer, fan_ins in enumerate(([50], [50, 400], [50, 400, 300])):
        values = biases[:, 200 * layer : 200 * (layer + 1)]
        assert float(values.square().mean()) == pytest.approx(math.prod(2 / n for n in fan_ins), rel=0.1)


def test_uniform_biases_reach_the_product_of_bounds():
    for layer, fan_ins in enumerate(([50], [50, 400], [50, 400, 300])):
        bound = math.prod(math.sqrt(6 / n) for n in fan_ins)
        bias = draw("he_uniform_scaled")[1][layer]
        assert 0.97 * bound < float(bias.abs().max()) <= bound


@pytest.mark.parametrize("name", ["glorot_normal", "kaiming_normal", "signed_constant"])
def test_zero_biases(name):
    assert not any(b.any() for b in draw(name)[1])


def test_signed_constant_is_constant():
    for weight in draw("signed_constant")[0]:
        assert weight.abs().unique().numel() == 1
