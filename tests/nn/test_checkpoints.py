"""State dicts between plain, masked and sparse layers, and from torch.nn.utils.prune and parametrize."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lotterykit.nn.convert import convert_

FORMS = ("plain", "masked", "sparse")


def model_of(form: str, masks: dict | None = None) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 2))
    if form != "plain":
        convert_(model, masks=masks, format=form)
    return model


def random_masks(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 6), "2.weight": (3, 2, 2)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("assign", [False, True])
def test_strict_exchange(source, target, assign) -> None:
    masks, x = random_masks(0), torch.randn(3, 6)
    giver, taker = model_of(source, masks), model_of(target, random_masks(1))
    if source == "plain":  # the taker's own masks stay
        masks = random_masks(1)
    with torch.no_grad():
        for name, mask in masks.items():
            if source != "sparse":
                giver.get_parameter(name).masked_fill_(~mask, 0.0)
    state = giver.state_dict()
    if target == "plain":
        state = {name: value for name, value in state.items() if not name.endswith("_mask")}
    keys = set(state)
    taker.load_state_dict(state, assign=assign)
    assert set(state) == keys
    torch.testing.assert_close(taker(x), giver(x))
    if target != "plain":
        assert all(torch.equal(taker.get_submodule(n[0]).weight_mask, mask) for n, mask in masks.items())


def test_loading_another_mask_keeps_the_parameter_object() -> None:
    giver, taker = model_of("sparse", random_masks(0)), model_of("sparse", random_masks(1))
    parameters = list(taker.parameters())
    taker.load_state_dict(giver.state_dict())
    assert all(a is b for a, b in zip(parameters, taker.parameters(), strict=True))
    assert taker[0].values.shape == giver[0].values.shape


def test_state_dict_with_keep_vars_is_differentiable() -> None:
    model = model_of("sparse", random_masks(0))
    state = model.state_dict(keep_vars=True)
    state["0.weight"].sum().backward()
    assert torch.equal(model[0].values.grad, torch.ones_like(model[0].values))
    assert not model.state_dict()["0.weight"].requires_grad


def test_checkpoint_of_torch_prune() -> None:
    source, x = model_of("plain"), torch.randn(3, 6)
    for layer in (source[0], source[2]):
        prune.random_unstructured(layer, "weight", 0.4)
        prune.random_unstructured(layer, "bias", 0.3)
    state = source.state_dict()
    target = model_of("sparse", random_masks(1))
    target.load_state_dict(state)
    torch.testing.assert_close(target(x), source(x))
    assert torch.equal(target[0].weight_mask, source[0].weight_mask.bool())
    assert torch.equal(target[2].bias_mask, source[2].bias_mask.bool())


def test_checkpoint_of_a_parametrization() -> None:
    class Times(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight):
            return weight * self.mask

    source, x = nn.Linear(6, 8), torch.randn(3, 6)
    for _ in range(2):
        parametrize.register_parametrization(source, "weight", Times((torch.rand(8, 6) < 0.7).float()))
    target = convert_(nn.Linear(6, 8), format="sparse")
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(x), source(x))


def test_wrong_checkpoints_are_refused() -> None:
    good = model_of("sparse", random_masks(0)).state_dict()
    for change, words in (
        ({"0.weight": torch.ones(8, 5)}, r"size mismatch for 0.weight: .*\[8, 5\].*\[8, 6\]"),
        ({"0.weight_mask": torch.ones(8, 5)}, r"size mismatch for 0.weight_mask"),
        ({"0.weight": None}, r"Missing key\(s\) in state_dict: \"0.weight\"\."),
        ({"0.bias": None}, r"Missing key\(s\) in state_dict: \"0.bias\"\."),
        ({"0.scale": torch.ones(1)}, "Unexpected key"),
    ):
        model = model_of("sparse", random_masks(1))
        before, mask = model[0].weight, model[0].weight_mask
        state = {key: value for key, value in (good | change).items() if value is not None}
        with pytest.raises(RuntimeError, match=words) as error:
            model.load_state_dict(state)
        assert str(error.value).count("\n\t") == 1  # one complaint
        if "size" in words:
            assert torch.equal(model[0].weight, before)
            assert torch.equal(model[0].weight_mask, mask)
    model = model_of("sparse", random_masks(1))
    model.load_state_dict({"0.weight_mask": torch.zeros(8, 6)}, strict=False)
    assert model[0].values.numel() == 0
