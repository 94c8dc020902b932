"""Tickets: rewinding, files that read back bit for bit, and every way a file can be wrong."""

from __future__ import annotations

import json
import os
import secrets
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.experiments.ticket import Ticket
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def ticket(seed: int = 0, **changes: Any) -> Ticket:
    model = network(seed)
    g = torch.Generator().manual_seed(seed)
    masks = {f"{i}.weight": torch.rand(model[i].weight.shape, generator=g) < 0.4 for i in (0, 4)}
    states = {label: network(i + 1).state_dict() for i, label in enumerate(("init", "500it"))}
    made = {
        "masks": Masks(masks), "snapshots": states,
        "recipe": {"method": "imp", "density": 0.4, "rounds": [1, 2]},
        "results": {"accuracy": 0.9, "loss": None},
    }  # fmt: skip
    return Ticket(**(made | changes))


def equal(a: Ticket, b: Ticket) -> bool:
    same = list(a.masks) == list(b.masks) and list(a.snapshots) == list(b.snapshots)
    same &= all(torch.equal(a.masks[k], b.masks[k]) for k in a.masks)
    for label, state in a.snapshots.items():
        other = b.snapshots[label]
        same &= list(state) == list(other)
        same &= all(torch.equal(state[k], other[k]) and state[k].dtype == other[k].dtype for k in state)
    return same and a.recipe == b.recipe and a.results == b.results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_file_reads_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    state = network(3).to(dtype).state_dict()
    state["0.weight"][0, 0, 0, 0] = torch.nan
    state["0.weight"][1, 0, 0, 0] = -0.0
    saved = ticket(snapshots={"init": state})
    saved.save(tmp_path / "t.safetensors")
    loaded = Ticket.load(tmp_path / "t.safetensors")
    assert loaded.digest() == saved.digest()
    bits = {torch.float64: torch.int64, torch.float32: torch.int32}.get(dtype, torch.int16)
    assert torch.equal(loaded.snapshots["init"]["0.weight"].view(bits), state["0.weight"].view(bits))
    saved = ticket()
    saved.save(tmp_path / "t.safetensors")  # over the other one
    assert equal(Ticket.load(tmp_path / "t.safetensors"), saved)


def test_every_part_counts_in_the_digest() -> None:
    first = ticket()
    masks, states = dict(first.masks), {k: dict(v) for k, v in first.snapshots.items()}
    flipped = {**masks, "4.weight": ~masks["4.weight"]}
    moved = {**states, "500it": {**states["500it"], "1.running_mean": torch.ones(4)}}
    swapped = {"init": states["500it"], "500it": states["init"]}
    others = [
        ticket(masks=Masks(flipped)),
        ticket(snapshots=moved),
        ticket(snapshots=swapped),
        ticket(recipe={"method": "imp", "density": 0.4, "rounds": [2, 1]}),
        ticket(results={"accuracy": 0.9}),
    ]
    assert len({t.digest() for t in (first, *others)}) == 6
    assert ticket().digest() == first.digest()


def test_rewind_and_apply() -> None:
    found, model = ticket(), network(7)
    found.apply_(model, "500it")
    state = model.state_dict()
    for name, expected in found.rewind("500it").items():
        assert torch.equal(state[name], expected), name
    for name, mask in found.masks.items():
        assert torch.equal(state[f"{name}_mask"], mask)
        assert not bool(state[name][~mask].any())
    assert bool((found.snapshots["500it"]["0.weight"] != 0).all()), "the snapshot itself stays dense"
    found.apply_(model)  # a masked network takes it as well
    assert torch.equal(model.state_dict()["4.weight"], found.rewind()["4.weight"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp([2, 5, 3]), "it lacks 0.bias|the network has no"),
        (nn.Sequential(*network()[:4], nn.Linear(16, 2)), r"4.weight is \[3, 16\], there \[2, 16\]"),
        (nn.Sequential(*network(), nn.Linear(3, 3)), "it lacks 5.weight, 5.bias"),
        (nn.Sequential(*network()[:4]), "the network has no 4.weight, 4.bias"),
    ],
)
def test_another_network_is_refused_untouched(model: nn.Module, message: str) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=message):
        ticket().apply_(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snapshots": {"500it": network().state_dict()}}, "needs a snapshot 'init', got 500it"),
        ({"snapshots": {}}, "got none"),
        ({"snapshots": {"init": {"0.weight": torch.ones(4, 1, 3, 3)}}}, "its weight none"),
        ({"snapshots": {"init": mlp([2, 3]).state_dict()}}, r"\[4, 1, 3, 3\], its weight \[3, 2\]"),
        ({"snapshots": {"init": network().state_dict(), "a/b": network().state_dict()}}, "without '/'"),
        ({"recipe": {"lr": torch.tensor(1.0)}}, "recipe.lr must be plain JSON, got Tensor"),
        ({"recipe": {1: 2}}, "keys must be strings, got 1"),
        ({"results": {"curve": [1.0, float("nan")]}}, r"results.curve\[1\] must be finite or None"),
        ({"results": {"shape": (1, 2)}}, "plain JSON, got tuple"),
    ],
)
def test_bad_parts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ticket(**changes)


def test_unknown_rewind_point() -> None:
    with pytest.raises(ArgumentError, match="no rewind point '2ep', only init, 500it"):
        ticket().rewind("2ep")


def test_files_that_are_no_ticket(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ArgumentError, match="cannot read a ticket"):
        Ticket.load(path)
    path.write_bytes(b"not a file of this kind")
    with pytest.raises(ArgumentError, match="cannot read a ticket"):
        Ticket.load(path)
    Masks({"0.weight": torch.ones(1, 1, dtype=torch.bool)}).save(path)
    with pytest.raises(ArgumentError, match="no ticket of lotterykit"):
        Ticket.load(path)
    with pytest.raises(ArgumentError, match="cannot write the ticket"):
        ticket().save(tmp_path / "none" / "t.safetensors")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "5", "null", '{"masks": 5}', "[" * 100_000, '{"masks": ["x"], "snapshots": {}}',
     '{"masks": [], "snapshots": {"init": []}, "recipe": {}, "results": {}}',
     '{"masks": [], "snapshots": [], "recipe": {}, "results": {}}'],
)  # fmt: skip
def test_damaged_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.safetensors"
    metadata = {"format": "lotterykit-ticket-1", "content": content, "digest": "0"}
    safetensors.torch.save_file({"mask/a": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(ArgumentError, match="damaged ticket"):
        Ticket.load(path)


def test_mutated_files_never_load(tmp_path: Path) -> None:
    """300 changed bytes and 50 cuts: one kind of error. Bytes that carry nothing may change."""
    seed = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))
    print(f"replay with LOTTERYKIT_TEST_SEED={seed}")
    path = tmp_path / "t.safetensors"
    saved = ticket()
    saved.save(path)
    whole = path.read_bytes()
    g = torch.Generator().manual_seed(seed)
    at = torch.randint(len(whole), (300,), generator=g).tolist()
    to = torch.randint(256, (300,), generator=g).tolist()
    mutants = [whole[:i] + bytes([byte]) + whole[i + 1 :] for i, byte in zip(at, to, strict=True)]
    mutants += [whole[:cut] for cut in at[:50]] + [whole + b"x"]
    refused = 0
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            loaded = Ticket.load(path)
        except ArgumentError:
            refused += 1
        else:
            assert equal(loaded, saved)
    assert refused > 250


def test_a_header_that_lies_about_its_length(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ArgumentError, match="cannot read a ticket"):
        Ticket.load(path)
