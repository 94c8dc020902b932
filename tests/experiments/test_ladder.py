"""The information ladder: what each rung keeps of the planted ticket, and what not."""

from __future__ import annotations

import pytest
import torch

from lotterykit.experiments.ladder import RUNGS
from lotterykit.experiments.mothers import Mothers
from lotterykit.experiments.spec import LADDER, CellSpec
from lotterykit.mask import Masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ticket(task: str) -> Masks:
    cell = CellSpec(task=task, method="oracle", density="truth", width=40, samples=100)
    return Mothers().hide(cell).truth


def shared(a: Masks, b: Masks) -> int:
    return sum(int((a[n] & b[n]).sum()) for n in a)


def test_rungs_are_the_methods() -> None:
    assert tuple(RUNGS) == LADDER


@pytest.mark.parametrize("task", ["circle", "relu", "helix"])
@pytest.mark.parametrize("rung", RUNGS)
def test_every_layer_keeps_its_density(task: str, rung: str) -> None:
    truth = ticket(task)
    found = RUNGS[rung](truth, generator())
    assert found.counts() == truth.counts()
    again = RUNGS[rung](truth, generator())
    assert all(torch.equal(found[n], again[n]) for n in truth)
    assert torch.equal(truth["0.weight"], ticket(task)["0.weight"])  # not written to


def test_densities_know_the_counts_alone() -> None:
    truth = ticket("helix")
    total = sum(kept for kept, _ in truth.counts().values())
    expected = sum(kept * kept / size for kept, size in truth.counts().values())
    mean = sum(shared(RUNGS["oracle-densities"](truth, generator(s)), truth) for s in range(30)) / 30
    assert mean == pytest.approx(expected, rel=0.3)
    assert mean < total / 2


def test_neurons_stay_between_live_neurons() -> None:
    truth = ticket("circle")
    found = RUNGS["oracle-neurons"](truth, generator())
    for name, mask in found.items():
        assert not mask[~truth[name].any(1)].any()
        assert not mask[:, ~truth[name].any(0)].any()
    assert shared(found, truth) < sum(kept for kept, _ in truth.counts().values())


def test_dead_weights_of_a_ticket_do_not_spoil_the_counts() -> None:
    """A ticket with a weight to nowhere: 3 kept in a layer whose live neurons have 1 connection."""
    first = torch.tensor([[True], [True], [True]])
    second = torch.tensor([[True, False, False]])
    found = RUNGS["oracle-neurons"](Masks({"0.weight": first, "2.weight": second}), generator())
    assert found.counts() == {"0.weight": (3, 3), "2.weight": (1, 3)}
    assert torch.equal(found["2.weight"], second)


@pytest.mark.parametrize("share", [10, 30, 50])
@pytest.mark.parametrize("task", ["circle", "relu", "helix"])
def test_less_exchanges_exactly_its_share(task: str, share: int) -> None:
    truth = ticket(task)
    total = sum(kept for kept, _ in truth.counts().values())
    found = RUNGS[f"oracle-less-{share}"](truth, generator(1))
    assert shared(found, truth) == total - round(share / 100 * total)


def test_a_full_layer_has_nothing_to_exchange() -> None:
    full = Masks({"0.weight": torch.ones(3, 2, dtype=torch.bool)})
    assert shared(RUNGS["oracle-less-50"](full, generator()), full) == 6
    empty = Masks({"0.weight": torch.zeros(3, 2, dtype=torch.bool)})
    assert all(rung(empty, generator()).density() == 0 for rung in RUNGS.values())
