"""`Masks`: counts, live paths against brute force, and files."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks, write_atomically


def random_masks(widths: list[int], density: float, seed: int) -> Masks:
    g = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(widths))
    return Masks(
        {f"{2 * i}.weight": torch.rand(b, a, generator=g) < density for i, (a, b) in enumerate(pairs)}
    )


def live_by_paths(masks: Masks) -> dict[str, torch.Tensor]:
    """Every path from an input to an output, one by one."""
    links = list(masks.values())
    live = {name: torch.zeros_like(mask) for name, mask in masks.items()}

    def walk(layer: int, unit: int, path: list[tuple[int, int, int]]) -> None:
        if layer == len(links):
            for i, out, into in path:
                list(live.values())[i][out, into] = True
            return
        for out in links[layer][:, unit].nonzero().flatten().tolist():
            walk(layer + 1, out, [*path, (layer, out, unit)])

    for unit in range(links[0].shape[1]):
        walk(0, unit, [])
    return live


@pytest.mark.parametrize("seed", range(20))
def test_live_is_what_lies_on_a_path(seed: int) -> None:
    masks = random_masks([2, 5, 4, 5, 3], 0.35, seed)
    expected = live_by_paths(masks)
    for name, mask in masks.live().items():
        assert torch.equal(mask, expected[name]), name


def test_live_through_a_flatten() -> None:
    conv = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    conv[1, 0, 0, 1] = conv[2, 0, 1, 1] = True
    linear = torch.zeros(2, 12, dtype=torch.bool)
    linear[0, 5] = linear[1, 0] = True  # input 5 reads channel 1, input 0 the dead channel 0
    live = Masks({"conv.weight": conv, "fc.weight": linear}).live()
    assert live["conv.weight"].nonzero().tolist() == [[1, 0, 0, 1]]
    assert live["fc.weight"].nonzero().tolist() == [[0, 5]]


def test_live_refuses_what_is_no_chain() -> None:
    with pytest.raises(ArgumentError, match="chain"):
        random_masks([2, 4, 3], 0.5, 0).__class__(
            {"a.weight": torch.ones(4, 2, dtype=torch.bool), "b.weight": torch.ones(3, 5, dtype=torch.bool)}
        ).live()


def test_counts_leave_biases_out_unless_asked() -> None:
    masks = Masks({"0.weight": torch.tensor([[True, False]]), "0.bias": torch.tensor([True])})
    assert masks.density() == 0.5
    assert masks.density(biases=True) == pytest.approx(2 / 3)
    assert masks.counts() == {"0.weight": (1, 2), "0.bias": (1, 1)}
    assert Masks({}).density() == 1.0


def test_apply_zeroes_plain_layers_and_checks_first() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    with pytest.raises(ArgumentError, match=r"no parameter 'x\.weight'"):
        Masks({"0.weight": mask, "x.weight": mask}).apply_(model)
    with pytest.raises(ArgumentError, match="shape"):
        Masks({"0.weight": mask, "2.weight": mask}).apply_(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    Masks({"0.weight": mask}).apply_(model)
    assert torch.equal(model[0].weight.detach(), torch.where(mask, before["0.weight"], 0.0))


def test_save_and_load(tmp_path) -> None:
    masks = random_masks([7, 5, 3, 1], 0.5, 1)
    masks.save(tmp_path / "m.safetensors")
    loaded = Masks.load(tmp_path / "m.safetensors")
    assert list(loaded) == list(masks)
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a safetensors file at all"])
def test_load_refuses_other_files(tmp_path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ArgumentError, match="cannot read"):
        Masks.load(tmp_path / "m")
    with pytest.raises(ArgumentError, match="cannot read"):
        Masks.load(tmp_path / "missing")


def test_what_killed_writers_left_is_not_in_the_way(tmp_path) -> None:
    path = tmp_path / "ticket"
    names = (f".ticket.{os.getpid()}", f".ticket.{os.getpid()}.{threading.get_ident()}")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "ticket"])


def test_a_mask_must_be_bool() -> None:
    with pytest.raises(ArgumentError, match="bool"):
        Masks({"w": torch.ones(2)})


def test_bytes_that_are_no_bool_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    Masks({"a": torch.tensor([[True, False, True]])}).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\2")
    with pytest.raises(ArgumentError, match="is damaged: mask 'a' has other bytes than 0 and 1"):
        Masks.load(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="no regular file"):
        Masks.load(tmp_path / "pipe")
