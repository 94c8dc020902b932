import copy

import numpy as np
import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp
from lotterykit.planting.match import match
from lotterykit.planting.plant import plant
from lotterykit.planting.targets import TARGETS, TargetNetwork, circle, helix, relu


def mother_of(target, seed=0, width=100, dtype=torch.float64, **options):
    return mlp(
        [target.widths[0], *[width] * (target.depth - 2), target.widths[-1]],
        seed=seed,
        dtype=dtype,
        **options,
    )


def target_of(weights, biases):
    as64 = [torch.as_tensor(w, dtype=torch.float64) for w in weights]
    return TargetNetwork("mine", tuple(as64), tuple(torch.as_tensor(b, dtype=torch.float64) for b in biases))


@pytest.mark.parametrize("matching", ["best", "random"])
@pytest.mark.parametrize("name", list(TARGETS))
def test_only_the_planted_places_change(name, matching):
    target = TARGETS[name](5)
    mother = mother_of(target)
    before = copy.deepcopy(mother.state_dict())
    planted = plant(target, mother, matching=matching, seed=1)
    assert all(torch.equal(before[k], v) for k, v in mother.state_dict().items()), "the mother was modified"
    inputs = torch.arange(target.widths[0])
    for layer, (weight, bias) in enumerate(zip(target.weights, target.biases, strict=True)):
        units = planted.assignment[layer]
        assert units.unique().numel() == units.numel() == weight.shape[0]
        ticket = torch.zeros_like(before[f"{2 * layer}.weight"], dtype=torch.bool)
        ticket[units[:, None], inputs[None, :]] = weight != 0
        assert torch.equal(planted.ticket[f"{2 * layer}.weight"], ticket)
        after = planted.network.state_dict()[f"{2 * layer}.weight"]
        assert torch.equal(after[~ticket], before[f"{2 * layer}.weight"][~ticket])
        planted_bias = torch.zeros_like(before[f"{2 * layer}.bias"], dtype=torch.bool)
        planted_bias[units[bias != 0]] = True
        assert torch.equal(planted.ticket[f"{2 * layer}.bias"], planted_bias)
        after = planted.network.state_dict()[f"{2 * layer}.bias"]
        assert bool((after[units[bias == 0]] == 0).all()), "a zero bias is planted as 0"
        others = torch.ones_like(planted_bias)
        others[units] = False
        assert torch.equal(after[others], before[f"{2 * layer}.bias"][others])
        inputs = units
    assert torch.equal(planted.assignment[-1], torch.arange(target.widths[-1])), "outputs are not permuted"
    kept = [sum(k for k, _ in m.counts().values()) for m in (planted.ticket.weights(), planted.ticket)]
    assert (kept[0], kept[1] - kept[0]) == target.nonzeros()
    assert planted.ticket.density() == pytest.approx(target.density(100))


def test_best_matching_follows_algorithm_1():
    """Against a plain loop over neurons: the largest cosine of free neurons, lambda by least squares."""
    target, mother = helix(4), mother_of(helix(4), seed=3)
    planted = plant(target, mother, gain=0.0)
    weights = [p.detach().numpy() for p in mother.parameters()]
    written = [p.detach().numpy() for p in planted.network.parameters()]
    inputs, factors = np.arange(1), np.ones(1)
    for layer in range(2):
        w0, b0 = weights[2 * layer], weights[2 * layer + 1]
        free, chosen, lambdas = set(range(100)), [], []
        for w, b in zip(target.weights[layer].numpy(), target.biases[layer].numpy(), strict=True):
            use = w != 0
            theta = np.append(w[use] * factors[use], [b] if b else [])
            quality = {}
            for j in free:
                m = np.append(w0[j, inputs[use]], [b0[j]] if b else [])
                factor = theta @ m / (m @ m)
                if factor > 0:
                    quality[j] = (round(np.linalg.norm(theta - factor * m), 10), -np.linalg.norm(m), factor)
            j = min(quality, key=lambda j: quality[j][:2])
            free.remove(j)
            chosen.append(j)
            lambdas.append(quality[j][2])
            got = np.append(written[2 * layer][j, inputs[use]], [written[2 * layer + 1][j]] if b else [])
            np.testing.assert_allclose(got, theta / lambdas[-1], rtol=1e-10)
        assert planted.assignment[layer].tolist() == chosen
        inputs, factors = np.array(chosen), np.array(lambdas)


def test_equal_cosines_go_to_the_largest_norm():
    mother = mother_of(relu(5))
    planted = plant(relu(5), mother, gain=0.0)
    first = mother[0].weight.detach()[:, 0]
    assert planted.assignment[0].item() == int(first.argmax())
    # at gain 0 a one-parameter neuron keeps the mother's own weight: nothing to see
    assert planted.network[0].weight.max().item() == pytest.approx(float(first.max()))


def test_gain_moves_the_scale_evenly():
    target, mother = circle(5), mother_of(circle(5))
    hidden, half, full = (plant(target, mother, gain=g) for g in (0.0, 0.5, 1.0))
    s = hidden.output_scale
    assert full.output_scale == 1.0
    assert half.output_scale == pytest.approx(s**0.5)
    for layer in range(4):
        for kind, power in (("weight", 1), ("bias", layer + 1)):
            name = f"{2 * layer}.{kind}"
            mask = hidden.ticket[name]
            a, b = (p.network.get_parameter(name)[mask] for p in (hidden, full))
            torch.testing.assert_close(b, a * s ** (power / 4), rtol=1e-12, atol=0)


def planted_norms(planted, network, index):
    """Norm of each unit's parameters in `network` at the places planted in layer `index` (bias included)."""
    weight, bias = (network.get_parameter(f"{index}.{kind}").detach() for kind in ("weight", "bias"))
    squares = (weight * planted.ticket[f"{index}.weight"]).square().sum(1)
    squares += (bias * planted.ticket[f"{index}.bias"]).square()
    return squares.sqrt()


@pytest.mark.parametrize("name", list(TARGETS))
def test_scalings_at_gain_0(name):
    """Each hidden neuron has the mother's norm at its places (norm), or 1 / cosine of it (paper)."""
    target = TARGETS[name](5)
    for seed in range(5):
        mother = mother_of(target, seed)
        for scaling in ("paper", "norm"):
            planted = plant(target, mother, scaling=scaling, gain=0.0)
            for index in (0, 2, 4):
                after, before = (planted_norms(planted, n, index) for n in (planted.network, mother))
                assert bool((after >= before * (1 - 1e-12)).all())
                if scaling == "norm":
                    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
            # the output layer shares one factor: its norm as a whole
            after, before = (planted_norms(planted, n, 6).norm() for n in (planted.network, mother))
            assert float(after) == pytest.approx(float(before))


def test_random_matching_takes_its_factors_from_the_norms():
    mother = mother_of(circle(5))
    a, b = (plant(circle(5), mother, matching="random", scaling=s, seed=2) for s in ("paper", "norm"))
    assert all(torch.equal(p, q) for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True))


def test_a_shared_relu_is_no_obstacle():
    activation = nn.ReLU()
    mother = nn.Sequential(nn.Linear(1, 9), activation, nn.Linear(9, 9), activation, nn.Linear(9, 1)).double()
    planted = plant(relu(4), mother)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(planted.oracle()(x), x.clamp_min(0), rtol=1e-13, atol=1e-13)


def test_random_matching_takes_its_seed():
    target, mother = circle(5), mother_of(circle(5))
    a, b, c = (plant(target, mother, matching="random", seed=s).assignment for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[2], c[2])


def test_bias_only_and_dead_neurons():
    """A neuron whose only parameter is its bias is planted; one without any is not, nor what reads it."""
    target = target_of([[[0.0], [2.0], [0.0]], [[3.0, 1.0, 5.0]]], [[0.7, -0.1, 0.0], [0.0]])
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    for matching in ("best", "random"):
        planted = plant(target, mother_of(target, width=6), matching=matching, gain=0.5)
        assert planted.assignment[0].tolist()[2] == -1
        assert planted.ticket.counts() == {
            "0.weight": (1, 6),
            "0.bias": (2, 6),
            "2.weight": (2, 6),
            "2.bias": (0, 1),
        }
        torch.testing.assert_close(
            planted.oracle()(x) * planted.output_scale, target(x), rtol=1e-13, atol=1e-13
        )
    # biases of the mother are zero: no direction and no norm to follow
    planted = plant(target, mother_of(target, width=6, init="glorot_normal"), gain=0.0)
    torch.testing.assert_close(planted.oracle()(x) * planted.output_scale, target(x), rtol=1e-13, atol=1e-13)


def test_no_positive_cosine_falls_back_to_the_norm_ratio():
    target = target_of([[[1.0]], [[1.0]]], [[0.0], [0.0]])
    mother = mother_of(target, width=3)
    with torch.no_grad():
        mother[0].weight.copy_(torch.tensor([[-1.0], [-3.0], [-2.0]]))
    planted = plant(target, mother, gain=0.0)
    assert planted.assignment[0].item() == 1
    assert planted.network[0].weight[1].item() == pytest.approx(3.0)


def test_zero_target():
    target = target_of([[[0.0]], [[0.0]]], [[0.0], [0.0]])
    planted = plant(target, mother_of(target, width=3))
    assert planted.report == {}
    assert planted.output_scale == 1.0
    assert planted.oracle()(torch.ones(1, 1, dtype=torch.float64)).item() == 0.0


def test_trained_masked_target():
    generator = torch.Generator().manual_seed(0)
    small = mlp([5, 8, 8, 3], seed=1, dtype=torch.float64)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in small.named_parameters()}
    Masks(masks).apply_(small)
    mother = mlp([5, 40, 40, 3], seed=2, dtype=torch.float64)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    for matching in ("best", "random"):
        planted = plant(small, mother, matching=matching, gain=0.2)
        torch.testing.assert_close(
            planted.oracle()(x) * planted.output_scale, small(x), rtol=1e-11, atol=1e-12
        )


def conv_net(channels, seed, flat=4):
    torch.manual_seed(seed)
    a, b, c = channels
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(b * flat, c),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(c, 5),
    ).double()


@pytest.mark.parametrize("gain", [0.0, 1.0])
@pytest.mark.parametrize("matching", ["best", "random"])
def test_convolutions(matching, gain):
    """A channel is matched over its kernel entries; a flattened channel keeps its positions."""
    with torch.random.fork_rng():
        small, mother = conv_net((3, 4, 6), 0), conv_net((8, 10, 20), 1)
        masks = {n: torch.rand(p.shape) < 0.5 for n, p in small.named_parameters()}
        x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    Masks(masks).apply_(small)
    planted = plant(small, mother.eval(), matching=matching, gain=gain)
    torch.testing.assert_close(
        planted.oracle()(x) * planted.output_scale, small.eval()(x), rtol=1e-10, atol=1e-11
    )
    kept = sum(int((p != 0).sum()) for n, p in small.named_parameters() if n.endswith("weight"))
    assert sum(k for k, _ in planted.ticket.weights().counts().values()) <= kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_mothers_dtype_is_kept(dtype):
    planted = plant(circle(5), mother_of(circle(5), dtype=dtype))
    assert {p.dtype for p in planted.network.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "bets"}, "did you mean 'best'"),
        ({"scaling": "papr"}, "did you mean 'paper'"),
        ({"gain": -0.1}, "gain"),
        ({"gain": 1.5}, "gain"),
        ({"gain": float("nan")}, "gain"),
        ({"gain": "1"}, "gain"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        plant(relu(4), mother_of(relu(4)), **options)


def test_bad_target():
    with pytest.raises(ArgumentError, match="target must be"):
        match("circle", mother_of(relu(4)))
