"""Scores against independent float64 derivations."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.nn.models import mlp
from lotterykit.pruning.flow import live_weights
from lotterykit.pruning.prune import prune_
from lotterykit.pruning.scores import SCORES, scores

CE = nn.functional.cross_entropy


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return mlp([3, 7, 6, 4], seed=5, dtype=dtype)


def batches(count: int = 2, dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(9, 3, generator=g, dtype=dtype), torch.randint(4, (9,), generator=g))
        for _ in range(count)
    ]


BATCHES = batches()


def loss_of_flat(model: nn.Module, flat: torch.Tensor, temperature: float) -> torch.Tensor:
    """The summed loss of all batches as a function of all weights in one vector (biases fixed)."""
    values, at = {}, 0
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            values[name] = flat[at : at + p.numel()].view_as(p)
            at += p.numel()
    return sum(CE(torch.func.functional_call(model, values, (x,)) / temperature, y) for x, y in BATCHES)


def flat_weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.endswith("weight")])


def flattened(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([f.flatten() for f in found.values()])


def test_snip_is_the_change_of_the_loss_by_each_mask_entry() -> None:
    model = network()
    flat = flat_weights(model)
    step, slopes = 1e-6, []
    for i in range(len(flat)):
        mask = torch.zeros_like(flat)
        mask[i] = step * flat[i]
        slopes.append(
            (loss_of_flat(model, flat + mask, 1.0) - loss_of_flat(model, flat - mask, 1.0)) / (2 * step)
        )
    expected = torch.stack(slopes).abs()
    found = flattened(scores(model, "snip", data=batches(), loss_fn=CE))
    assert torch.allclose(found, expected / expected.sum(), atol=1e-8)


@pytest.mark.parametrize("temperature", [None, 1.0, 50.0])
def test_grasp_is_weight_times_hessian_times_gradient(temperature: float | None) -> None:
    model = network()
    flat = flat_weights(model)
    divisor = temperature or 200.0
    gradient = torch.func.grad(lambda f: loss_of_flat(model, f, divisor))(flat)
    hessian = torch.func.hessian(lambda f: loss_of_flat(model, f, divisor))(flat)
    expected = flat * (hessian @ gradient)
    options = {} if temperature is None else {"temperature": temperature}
    found = flattened(scores(model, "grasp", data=batches(), loss_fn=CE, options=options))
    assert (found < 0).any()
    assert torch.allclose(found, expected / (1e-10 + expected.sum().abs()), rtol=1e-6, atol=1e-12)


def test_grasp_temperature_is_1_for_regression() -> None:
    model = network()
    data = [(x, torch.randn(9, 4, dtype=torch.float64)) for x, _ in batches(1)]
    mse = nn.functional.mse_loss
    default = scores(model, "grasp", data=data, loss_fn=mse)
    one = scores(model, "grasp", data=data, loss_fn=mse, options={"temperature": 1.0})
    assert all(torch.equal(default[name], one[name]) for name in one)


@pytest.mark.parametrize("bias", [True, False])
def test_synflow_is_the_sum_over_paths(bias: bool) -> None:
    """By hand: with W = |W m|, score = w * (what reaches the weight) * (what it reaches)."""
    model = network(torch.float32)
    prune_(model, "random", density=0.5)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    weights = [layer.weight.detach().double().abs() * layer.weight_mask for layer in layers]
    offsets = [layer.bias.detach().double().abs() * bias for layer in layers]
    below = [torch.ones(3, dtype=torch.float64)]
    for w, b in zip(weights, offsets, strict=True):
        below.append(w @ below[-1] + b)
    above = torch.ones(4, dtype=torch.float64)
    expected = []
    for i in reversed(range(3)):
        expected.insert(0, weights[i] * above[:, None] * below[i][None] / below[-1].sum())
        above = weights[i].T @ above
    found = scores(model, "synflow", options={"bias": bias})
    for value, want, layer in zip(found.values(), expected, layers, strict=True):
        assert torch.allclose(value * layer.weight_mask, want, rtol=1e-12)
        if not bias:
            assert float((value * layer.weight_mask).sum()) == pytest.approx(1.0)


def test_synflow_survives_64_layers_of_width_512() -> None:
    """The published float32 overflows here; ours agrees with a float64 chain of matrix-vector products."""
    generator = torch.Generator().manual_seed(0)
    widths = [4, *[512] * 63, 3]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=generator) * (2 / a) ** 0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    linear = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    up = [torch.ones(4, dtype=torch.float64)]
    for w in linear:
        up.append(w.double().abs() @ up[-1])
    assert not torch.isfinite(up[-1].float()).all()
    down = torch.ones(3, dtype=torch.float64)
    found = list(scores(model, "synflow", options={"bias": False}).values())
    for i in reversed(range(len(linear))):
        expected = linear[i].double().abs() * down[:, None] * up[i][None] / up[-1].sum()
        assert torch.allclose(found[i], expected, rtol=1e-10)
        down = linear[i].double().abs().T @ down


def test_synflow_counts_batch_norm_by_its_absolute_values() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    model = model.double().eval()
    norm = model[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-1.0, 0.5, 2.0]))
        norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25]))
    absolute = copy.deepcopy(model)
    for tensor in [*absolute.parameters(), *(b for b in absolute.buffers() if b.is_floating_point())]:
        tensor.data.abs_()
    total = absolute(torch.ones(1, 2, 4, 4, dtype=torch.float64)).sum()
    total.backward()
    found = scores(model, "synflow", example_input=torch.randn(1, 2, 4, 4))
    for name, value in found.items():
        p = absolute.get_parameter(name)
        assert torch.allclose(value, (p * p.grad / total).detach(), rtol=1e-10), name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), model.buffers(), strict=True))


def test_live_weights_agree_with_the_chain_rule_of_masks() -> None:
    for seed in range(5):
        model = mlp([3, 12, 9, 2], seed=seed)
        masks = prune_(model, "random", density=0.15, seed=seed)
        expected = masks.live()
        for name, live in live_weights(model).items():
            assert torch.equal(live, expected[name]), (seed, name)


def test_scoring_changes_nothing() -> None:
    model = (
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).double().train()
    )
    before = copy.deepcopy(model.state_dict())
    for method in SCORES:
        found = scores(model, method, data=batches(), loss_fn=CE)
        again = scores(model, method, data=batches(), loss_fn=CE)
        assert list(found) == ["0.weight", "3.weight"]
        assert all(torch.equal(found[name], again[name]) for name in found), method
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_inversion_negates_signed_scores_too() -> None:
    model = network()
    for method in SCORES:
        plain = scores(model, method, data=batches(), loss_fn=CE)
        inverted = scores(model, method, data=batches(), loss_fn=CE, invert=True)
        assert all(torch.equal(inverted[name], -plain[name]) for name in plain), method


def test_biases_take_part_when_asked() -> None:
    model = network()
    names = {name for name, _ in model.named_parameters()}
    for method in SCORES:
        found = scores(model, method, data=batches(), loss_fn=CE, prune_bias=True)
        assert set(found) == names
        assert found["0.bias"].shape == (7,)


def test_a_callable_is_a_method() -> None:
    model = network()
    found = scores(model, lambda m, data, loss_fn: {n: p.detach() for n, p in m.named_parameters()})
    assert torch.equal(found["2.weight"], model[2].weight.detach())
    with pytest.raises(ArgumentError, match=r"no scores for 0\.weight"):
        scores(model, lambda m, data, loss_fn: {})
    with pytest.raises(ArgumentError, match="not \\[7, 3\\]"):
        scores(model, lambda m, d, f: {n: p.detach().flatten() for n, p in m.named_parameters()})


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("snipp", {}, "did you mean 'snip'"),
        ("snip", {}, "pass data"),
        ("snip", {"data": [], "loss_fn": CE}, "no batch"),
        ("grasp", {"data": iter(batches()), "loss_fn": CE}, "one-shot"),
        ("grasp", {"data": batches(), "loss_fn": CE, "options": {"temp": 1}}, "option of grasp"),
        ("magnitude", {"options": {"bias": 1}}, "option of magnitude"),
        ("random", {"seed": -3}, "seed"),
    ],
)
def test_bad_calls(method: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        scores(network(), method, **kwargs)


def test_a_model_without_layers_and_an_unknown_input_shape() -> None:
    with pytest.raises(ArgumentError, match="no Linear or Conv"):
        scores(nn.Sequential(nn.ReLU()), "magnitude")
    with pytest.raises(ArgumentError, match="example_input"):
        scores(nn.Sequential(nn.Conv2d(1, 1, 1)), "synflow")


def test_synflow_rescales_chains_and_says_when_float64_overflows() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(3)])
    for layer in model:
        nn.init.constant_(layer.weight, 1e38)
    deep = nn.Sequential(*[copy.deepcopy(layer) for _ in range(3) for layer in model])
    assert all(float(score) == pytest.approx(1.0) for score in scores(deep, "synflow").values())
    with pytest.raises(ArgumentError, match="overflow"):
        scores(nn.Sequential(deep, nn.LeakyReLU()), "synflow")  # autograd's: no chain that is rescaled


def test_every_submodule_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    model.train()
    model[1].eval()
    scores(model, "snip", data=batches(), loss_fn=CE)
    live_weights(model)
    assert [m.training for m in model] == [True, False, True, True]


def test_pruned_entries_may_hold_anything() -> None:
    for method in ("snip", "grasp"):
        clean = network()
        masks = prune_(clean, "random", density=0.5)
        expected = scores(clean, method, data=batches(), loss_fn=CE)
        with torch.no_grad():
            clean[0].weight[~masks["0.weight"]] = float("nan")
            clean[2].weight[~masks["2.weight"]] = float("inf")
        found = scores(clean, method, data=batches(), loss_fn=CE)
        assert all(torch.equal(found[name], expected[name]) for name in expected), method
        assert all(bool(found[name].isfinite().all()) for name in expected), method


def test_frozen_weights_and_bad_temperatures_are_refused() -> None:
    model = network()
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="> 0"):
            scores(model, "grasp", data=batches(), loss_fn=CE, options={"temperature": temperature})
    model[2].weight.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"2\.weight has requires_grad=False"):
        scores(model, "snip", data=batches(), loss_fn=CE)
    assert set(scores(model, "magnitude")) == {"0.weight", "2.weight", "4.weight"}


def test_scores_under_no_grad() -> None:
    with torch.no_grad():
        found = scores(network(), "snip", data=batches(), loss_fn=CE)
    assert torch.equal(found["0.weight"], scores(network(), "snip", data=batches(), loss_fn=CE)["0.weight"])


@pytest.mark.parametrize(
    "tail", [nn.Softmax(1), nn.Sequential(nn.LayerNorm(4))], ids=["softmax", "layer norm"]
)
def test_live_weights_say_when_they_cannot_tell(tail: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), tail)
    with pytest.raises(ArgumentError, match="product"):
        live_weights(model)
