"""Readers of what belongs to a network: tickets, masks, journals of searches, checkpoints of torch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import safetensors
import torch
from damaged import Mutant
from damaged_archives import damaged_pickle, damaged_safetensors, damaged_zip, fragments, places
from reader import Reader, check_not_called, of, saved_by
from torch import nn

from lotterykit.experiments.setup import Setup
from lotterykit.experiments.ticket import Ticket
from lotterykit.experiments.trainings import Trained, Training, Turn
from lotterykit.mask import Masks
from lotterykit.nn.checkpoints import load_checkpoint_, read_masks
from lotterykit.training.recipe import Recipe, Split


def network(seed: int = 0) -> nn.Sequential:
    """Three layers with a batch-norm, seeded."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def masks(seed: int = 0) -> Masks:
    """Masks of `network`, about half of the weights kept."""
    g = torch.Generator().manual_seed(seed)
    return Masks({f"{i}.weight": torch.rand(network()[i].weight.shape, generator=g) < 0.5 for i in (0, 3)})


def same_tensors(a: Any, b: Any) -> bool:
    """Whether two mappings hold the same tensors, bit for bit, in the same order."""
    bits = [[(n, t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).tolist()) for n, t in of.items()]
            for of in (a, b)]  # fmt: skip
    return bits[0] == bits[1]


def tickets(folder: Path) -> Reader:
    """`Ticket.load`: what loads is the ticket that was saved, bit for bit."""
    results = {"accuracy": 0.9, "loss": None, "cost": {"epochs": 3}}
    recipe = {
        "method": "imp",
        "network": "lenet",
        "search": {"method": "imp", "density": 0.4},
        "rounds": [1, 2],
    }
    saved = [
        Ticket(masks(), {"init": network(1).state_dict()}, recipe, results),
        Ticket(masks(1), {k: network(i).half().state_dict() for i, k in enumerate(("init", "2ep"))}, recipe),
    ]
    samples = [saved_by(ticket.save, folder) for ticket in saved]

    def read(path: Path, mutant: Mutant) -> None:
        loaded, original = Ticket.load(path), saved[mutant.origin]
        assert loaded.digest() == original.digest()
        assert list(loaded.snapshots) == list(original.snapshots)
        assert same_tensors(loaded.masks, original.masks)
        assert all(same_tensors(loaded.snapshots[k], v) for k, v in original.snapshots.items())
        assert json.dumps([loaded.recipe, loaded.results]) == json.dumps([original.recipe, original.results])

    return Reader(samples, of(samples, damaged_safetensors), read)


def mask_files(folder: Path) -> Reader:
    """`Masks.load`: every byte is 0 or 1."""
    samples = [
        saved_by(masks().save, folder),
        saved_by(Masks({"a": torch.ones(3, 3, dtype=torch.bool)}).save, folder),
    ]

    def read(path: Path, mutant: Mutant) -> None:
        for mask in Masks.load(path).values():
            assert mask.dtype == torch.bool
            assert bool((mask.view(torch.uint8) <= 1).all())

    return Reader(samples, of(samples, damaged_safetensors), read)


def journals(folder: Path) -> Reader:
    """A training of a search's journal: what is gone on with is what was written."""
    x, y = torch.zeros(8, 6), torch.zeros(8, dtype=torch.int64)
    setup = Setup(network, Split(x, y, x, y))
    training = Training(
        network(1).state_dict(), masks(), Recipe("cross_entropy", epochs=4, batch_size=4), seed=1
    )
    curve = [{"loss": 0.5, "accuracy": 0.25}]
    found = Trained(
        network(2).state_dict(), {"loss": 0.5}, masks(), curve, [2], curve, {"step": torch.tensor(2.0)}
    )
    path = folder / "training.safetensors"
    path.unlink(missing_ok=True)
    Turn(training, setup, path).take(found)
    samples = [path.read_bytes()]
    path.unlink()

    def read(path: Path, mutant: Mutant) -> None:
        turn = Turn(training, setup, path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            if "digest" not in file.metadata():  # as the first journals were
                return
        got = turn.found
        assert (turn.finished, turn.at) == (True, turn.end)
        assert same_tensors(got.state, found.state)
        assert same_tensors(got.masks, found.masks)
        assert (got.curve, got.steps, got.validation, got.metrics) == (curve, [2], curve, {"loss": 0.5})

    return Reader(samples, of(samples, damaged_safetensors), read, ".safetensors")


def checkpoints(folder: Path) -> Reader:
    """`read_masks` and `load_checkpoint_` of what torch.save wrote; nothing that it names is called."""
    marker = folder / "called"
    hostile = fragments(str(marker))
    model = network()
    pruned = {"state_dict": model.state_dict() | {f"{k}_mask": m.float() for k, m in masks().items()}}
    samples = []
    for content in (pruned, model.state_dict()):  # the second holds no masks
        out = io.BytesIO()
        torch.save(content, out)
        samples.append(out.getvalue())
    old = io.BytesIO()
    torch.save(pruned, old, _use_new_zipfile_serialization=False)
    samples.append(old.getvalue())
    at = places(old.getvalue())  # of the first pickle in it, a number

    def damaged(rng: Random, data: bytes) -> tuple[bytes, str]:
        if data[:2] == b"PK":
            return damaged_zip(rng, data, hostile)
        return damaged_pickle(rng, data, [*at, *range(0, len(data), 7)], hostile)

    def read(path: Path, mutant: Mutant) -> None:
        try:
            load_checkpoint_(network(), path)
            if mutant.origin != 1:
                assert all(mask.dtype == torch.bool for mask in read_masks(path).values())
        finally:
            check_not_called(marker)

    return Reader(samples, of(samples, damaged), read, ".pt")
