"""Files of torch.nn.utils.prune, parametrize, open_lth and Synaptic-Flow, as those tools write them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import lotterykit as lk
from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_

WEIGHTS = {"0.weight": (4, 1, 3, 3), "4.weight": (3, 16)}


def model(seed: int = 0) -> nn.Sequential:
    """Convolution, batch-norm, linear, with random values everywhere."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*net.parameters(), net[1].running_mean):
            value.copy_(torch.randn(value.shape, generator=generator))
    return net.eval()


def random_masks(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in WEIGHTS.items()}


class Times(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def torch_prune(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    net = model(1)
    for name, mask in masks.items():
        prune.custom_from_mask(net[int(name[0])], "weight", mask)
    return net.state_dict()


def parametrized(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two masks in a row: what either prunes is pruned."""
    net = model(1)
    for name, mask in masks.items():
        other = mask | (torch.rand(mask.shape) < 0.5)
        for part in (other.float(), (mask | ~other).float()):
            parametrize.register_parametrization(net[int(name[0])], "weight", Times(part))
    return net.state_dict()


def synaptic_flow(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its layers have float buffers `weight_mask` and `bias_mask`, batch-norm too."""
    net = model(1)
    for i in (0, 1, 4):
        for kind in ("weight", "bias"):
            parameter = getattr(net[i], kind)
            mask = masks.get(f"{i}.{kind}", torch.ones_like(parameter))
            net[i].register_buffer(f"{kind}_mask", mask.float())
    return net.state_dict()


def open_lth(masks: dict[str, Tensor]) -> dict[str, object]:
    """A training checkpoint of its PrunedModel, which keeps the network as `model`."""
    outer = nn.Module()
    outer.model = model(1)
    for name, mask in masks.items():
        outer.register_buffer("mask_" + name.replace(".", "___"), mask.float())
    optimizer = torch.optim.SGD(outer.parameters(), 0.1)
    return {"ep": 3, "model_state_dict": outer.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def data_parallel(masks: dict[str, Tensor]) -> dict[str, object]:
    state = convert_(model(1), masks=masks).state_dict()
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


TOOLS: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "torch.nn.utils.prune": torch_prune,
    "parametrize": parametrized,
    "Synaptic-Flow": synaptic_flow,
    "open_lth": open_lth,
    "DataParallel": data_parallel,
}


@pytest.mark.parametrize("tool", list(TOOLS))
@pytest.mark.parametrize("format", ["plain", "masked", "sparse"])
def test_checkpoints(tool: str, format: str, tmp_path: Path) -> None:
    masks, x = random_masks(), torch.randn(2, 1, 4, 4)
    torch.save(TOOLS[tool](masks), tmp_path / "model.pt")
    taker = model(2)
    if format != "plain":
        convert_(taker, masks=random_masks(5), format=format)
    assert lk.load_checkpoint_(taker, tmp_path / "model.pt") is taker
    want = model(1)
    Masks(masks).apply_(want)
    torch.testing.assert_close(taker(x), want(x))
    assert all(torch.equal(taker[int(name[0])].weight_mask, mask) for name, mask in masks.items())
    assert taker[0].bias_mask is None


@pytest.mark.parametrize("tool", list(TOOLS))
def test_masks_of_checkpoints(tool: str, tmp_path: Path) -> None:
    masks = random_masks()
    torch.save(TOOLS[tool](masks), tmp_path / "model.pt")
    for fit in (None, model()):
        found = lk.read_masks(tmp_path / "model.pt", fit)
        assert list(found) == list(masks)
        assert all(torch.equal(found[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool, torch.uint8])
def test_mask_files_of_open_lth(dtype: torch.dtype, tmp_path: Path) -> None:
    """A dict of name -> ints; the output layer may be missing, the order is the network's."""
    masks = random_masks()
    for names in (["4.weight", "0.weight"], ["0.weight"]):
        torch.save({name: masks[name].to(dtype) for name in names}, tmp_path / "mask.pth")
        found = lk.read_masks(tmp_path / "mask.pth", model())
        assert list(found) == sorted(names)
        assert all(torch.equal(found[name], masks[name]) for name in names)


def test_safetensors(tmp_path: Path) -> None:
    masks, x = random_masks(), torch.randn(2, 1, 4, 4)
    Masks(masks).save(tmp_path / "own.safetensors")
    found = lk.read_masks(tmp_path / "own.safetensors", model())
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    safetensors.torch.save_file(synaptic_flow(masks), tmp_path / "model.safetensors")
    want = Masks(masks).apply_(model(1))
    torch.testing.assert_close(lk.load_checkpoint_(model(2), tmp_path / "model.safetensors")(x), want(x))


def test_pruned_biases_and_batch_norm_are_kept(tmp_path: Path) -> None:
    x, masks = torch.randn(2, 1, 4, 4), random_masks()
    masks["4.bias"] = torch.tensor([True, False, True])
    masks["1.weight"] = torch.tensor([True, True, False, True])
    torch.save(synaptic_flow(masks), tmp_path / "model.pt")
    taker, want = lk.load_checkpoint_(model(2), tmp_path / "model.pt"), model(1)
    with torch.no_grad():
        for name, mask in masks.items():
            want.get_parameter(name).masked_fill_(~mask, 0.0)
    torch.testing.assert_close(taker(x), want(x))
    assert torch.equal(taker[4].bias_mask, masks["4.bias"])
    with pytest.raises(ArgumentError, match=r"no prunable weight '1\.weight'"):
        lk.read_masks(tmp_path / "model.pt", model())


def test_a_plain_checkpoint_leaves_the_masks(tmp_path: Path) -> None:
    x, masks = torch.randn(2, 1, 4, 4), random_masks()
    torch.save(model(1).state_dict(), tmp_path / "model.pt")
    taker = lk.load_checkpoint_(convert_(model(2), masks=masks), tmp_path / "model.pt")
    torch.testing.assert_close(taker(x), Masks(masks).apply_(model(1))(x))
    plain = lk.load_checkpoint_(model(2), tmp_path / "model.pt")
    assert type(plain[0]) is nn.Conv2d
    with pytest.raises(ArgumentError, match=r"no masks: '0\.weight' has other values than 0 and 1"):
        lk.read_masks(tmp_path / "model.pt")


def test_counters_of_old_files_may_be_missing(tmp_path: Path) -> None:
    state = model(1).state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "model.pt")
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(lk.load_checkpoint_(model(2), tmp_path / "model.pt")(x), model(1)(x))


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("read", [lk.read_masks, lambda path: lk.load_checkpoint_(model(), path)])
def test_nothing_but_tensors_is_unpickled(read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Bomb()}, "bomb.pt")
    with pytest.raises(ArgumentError, match=r"cannot read bomb\.pt, which may hold tensors only") as error:
        read("bomb.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"PK\x03\x04 cut short", "cannot read"),
        ([torch.ones(2)], "but a list"),
        ({}, "but a dict"),
        ({"0.weight": 3}, "'0.weight' is a int, not a tensor"),
        ({1: torch.ones(2)}, "not a tensor"),
        ({"0.weight": torch.full((4, 1, 3, 3), 0.5)}, "other values than 0 and 1"),
        ({"0.weight": torch.full((4, 1, 3, 3), torch.nan)}, "other values than 0 and 1"),
        ({"0.weight_mask": 2 * torch.ones(4, 1, 3, 3)}, "'0.weight_mask' has other values"),
        ({"0.bias_mask": torch.ones(4)}, "holds no masks"),
        ({"conv.weight": torch.ones(4, 1)}, "no prunable weight 'conv.weight'"),
        ({"0.weight": torch.ones(4, 3)}, r"'0.weight' has shape \(4, 3\), the network's \(4, 1, 3, 3\)"),
        ({f"{i}.w": torch.ones(1, 1) for i in range(9)}, "'2.w'; and 6 more$"),
    ],
)
def test_bad_mask_files(content, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ArgumentError, match=message):
        lk.read_masks(path, model())
    with pytest.raises(ArgumentError, match="cannot read"):
        lk.read_masks(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"4.weight": torch.ones(3, 15)}, r"'4.weight' has shape \(3, 15\), the network's \(3, 16\)"),
        ({"4.weight": None}, "no '4.weight' in the file"),
        ({"1.running_mean": None}, "no '1.running_mean' in the file"),
        ({"fc.weight": torch.ones(1)}, "no parameter 'fc.weight'"),
        ({"0.weight_mask": torch.ones(4, 1, 3, 2)}, r"'0.weight' has shape \(4, 1, 3, 2\)"),
        ({"1.weight_mask": torch.ones(3)}, "no prunable weight '1.weight'"),
        ({"9.weight_mask": torch.ones(3, 3)}, "no prunable weight '9.weight'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message: str, tmp_path: Path) -> None:
    state = {name: value for name, value in (model(1).state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "model.pt")
    taker = model(2)
    with pytest.raises(ArgumentError, match=message) as error:
        lk.load_checkpoint_(taker, tmp_path / "model.pt")
    assert "does not fit the Sequential" in str(error.value)
    after, before = taker.state_dict(), model(2).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert type(taker[0]) is nn.Conv2d
