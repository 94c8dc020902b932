import json

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.models import mlp
from lotterykit.planting.plant import plant
from lotterykit.planting.recovery import recovery
from lotterykit.planting.targets import TARGETS, circle


def planted_circle(seed=0):
    return plant(circle(5), mlp([2, 100, 100, 100, 4], seed=seed))


def permuted(masks, seed):
    """The weight masks of the same network with hidden units in another order."""
    generator = torch.Generator().manual_seed(seed)
    order, out = torch.arange(next(iter(masks.values())).shape[1]), {}
    names = list(masks)
    for name in names:
        rows = torch.arange(masks[name].shape[0])
        if name != names[-1]:
            rows = torch.randperm(len(rows), generator=generator)
        out[name] = masks[name][rows][:, order]
        order = rows
    return Masks(out)


def test_the_ticket_recovers_itself():
    planted = planted_circle()
    for found in (planted.ticket, planted.ticket.weights()):
        for truth in (planted, planted.ticket):
            r = recovery(found, truth)
            assert (r.precision, r.recall, r.iou) == (1, 1, 1)
            assert (r.live.precision, r.live.recall) == (1, 1)
            assert set(r.per_layer) == {"0.weight", "2.weight", "4.weight", "6.weight"}


def test_numbers_by_hand():
    truth = Masks(
        {"0.weight": torch.tensor([[1, 1], [0, 0]]).bool(), "2.weight": torch.tensor([[1, 0]]).bool()}
    )
    found = Masks(
        {
            "0.weight": torch.tensor([[1, 0], [1, 0]]).bool(),
            "0.bias": torch.tensor([1, 1]).bool(),
            "2.weight": torch.tensor([[0, 1]]).bool(),
        }
    )
    r = recovery(found, truth)
    assert (r.precision, r.recall, r.iou) == (1 / 3, 1 / 3, 1 / 5)
    assert r.per_layer["0.weight"].as_dict() == {"precision": 0.5, "recall": 0.5, "iou": 1 / 3}
    assert r.per_layer["2.weight"].as_dict() == {"precision": 0.0, "recall": 0.0, "iou": 0.0}
    # alive in found: x1 -> unit 2 -> out; in truth: x1, x2 -> unit 1 -> out
    assert r.live.as_dict() == {"precision": 0.0, "recall": 0.0, "iou": 0.0}
    assert json.loads(json.dumps(r.as_dict())) == r.as_dict()
    swapped = recovery(found, truth, up_to_permutation=True)
    assert (swapped.precision, swapped.recall) == (2 / 3, 2 / 3)


def test_empty_sets():
    planted = planted_circle()
    nothing = Masks({n: torch.zeros_like(m) for n, m in planted.ticket.items()})
    assert recovery(nothing, planted).as_dict()["iou"] == 0
    r = recovery(nothing, planted)
    assert (r.precision, r.recall, r.live.precision) == (0, 0, 0)
    r = recovery(planted.ticket, nothing)
    assert (r.precision, r.recall, r.iou) == (0, 1, 0)
    assert recovery(nothing, nothing).iou == 1


def test_a_random_mask_recovers_its_density():
    planted = planted_circle()
    generator = torch.Generator().manual_seed(1)
    found = Masks({n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in planted.ticket.items()})
    r = recovery(found, planted)
    assert r.recall == pytest.approx(0.5, abs=0.2)
    assert r.precision == pytest.approx(planted.ticket.density(), abs=0.003)


@pytest.mark.parametrize("depth", [3, 5, 8])
@pytest.mark.parametrize("name", list(TARGETS))
def test_a_renumbered_ticket_is_found_up_to_permutation(name, depth):
    pytest.importorskip("scipy")
    target = TARGETS[name](depth)
    mother = mlp([target.widths[0], *[60] * (depth - 2), target.widths[-1]])
    ticket = plant(target, mother).ticket.weights()
    for seed in range(3):
        found = permuted(ticket, seed)
        assert recovery(found, ticket).recall < 0.9
        assert recovery(found, ticket, up_to_permutation=True).iou == 1


def test_permutation_with_noise_and_convolutions():
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (6, 3, 3, 3), "2.weight": (8, 6, 3, 3), "5.weight": (5, 8 * 4)}
    truth = Masks({n: torch.rand(s, generator=generator) < 0.3 for n, s in shapes.items()})
    a, b = torch.randperm(6, generator=generator), torch.randperm(8, generator=generator)
    last = truth["5.weight"].reshape(5, 8, 4)[:, b].reshape(5, 32)
    found = {"0.weight": truth["0.weight"][a], "2.weight": truth["2.weight"][b][:, a], "5.weight": last}
    assert recovery(Masks(found), truth, up_to_permutation=True).iou == 1
    noisy = {n: m & (torch.rand(m.shape, generator=generator) < 0.8) for n, m in found.items()}
    r = recovery(Masks(noisy), truth, up_to_permutation=True)
    assert r.precision == 1
    assert r.recall == pytest.approx(0.8, abs=0.08)


def test_bad_input():
    planted = planted_circle()
    with pytest.raises(ArgumentError, match="compares Masks"):
        recovery({}, planted)
    with pytest.raises(ArgumentError, match="no weight in common"):
        recovery(Masks({"9.weight": torch.ones(1, 1).bool()}), planted)
    with pytest.raises(ArgumentError, match=r"0\.weight"):
        recovery(Masks({"0.weight": torch.ones(1, 1).bool()}), planted)
