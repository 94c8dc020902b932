"""Sanity checks of tickets, verdicts, and the small-dense network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.experiments.check import check_ticket, retrain
from lotterykit.experiments.find import find_ticket
from lotterykit.experiments.judge import judge
from lotterykit.experiments.narrow import narrowed
from lotterykit.experiments.resolved import resolve
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.ticket import Ticket
from lotterykit.experiments.verdict import correlation_indicator
from lotterykit.nn import mlp, network
from lotterykit.training import train
from lotterykit.training.recipe import Split

FIELDS = {"data": "digits", "validation": 100, "steps": 150, "density": 0.1}


@pytest.fixture(scope="module")
def ticket() -> Ticket:
    return find_ticket(SearchSpec(method="imp", rewind="20it", **FIELDS))


def test_a_ticket_of_digits_beats_its_controls(ticket):
    found = ticket.check("shuffle", "reinit", "smart-ratio", "noise", seeds=2, scale=1.0)
    assert list(found.results) == ["ticket", "shuffle", "reinit", "smart-ratio", "noise"]
    for kind in ("shuffle", "reinit"):
        assert min(found.values("ticket")) > max(found.values(kind))
    assert len(found.lines()) == 5
    for kind, by_seed in found.results.items():
        assert set(by_seed) == {0, 1}, kind
        assert all(row["density"] == ticket.density() for row in by_seed.values())


def test_the_ticket_trains_as_the_search_trained_it(ticket):
    """From its rewind point, with the schedule from there; against the public loop."""
    again = retrain(ticket)
    assert again.results["accuracy"] == ticket.results["accuracy"]
    one = resolve({"": SearchSpec(method="imp", rewind="20it", **FIELDS)})[""]
    model = ticket.apply_(network("lenet", input=(1, 8, 8)), "20it")
    result = train(model, one.setup.data, one.recipe, first=20, steps=150)
    assert abs(result.metrics["loss"] - ticket.results["loss"]) < 1e-3
    shorter = retrain(ticket, "init", steps=30, lr=1e-4, seed=3)
    assert shorter.results["loss"] > ticket.results["loss"]


def test_inversion_is_another_search():
    snip = find_ticket(SearchSpec(method="snip", **FIELDS))
    found = snip.check("invert", seeds=[4])
    assert max(found.values("invert")) < min(found.values("ticket"))
    inverted = find_ticket(SearchSpec(method="snip", invert=True, seed=4, **FIELDS))
    assert found.results["invert"][4]["accuracy"] == inverted.results["accuracy"]


def test_a_ticket_that_was_trained_again_is_still_the_searchs(ticket):
    """It keeps the rewind points, goes back to the same one, and says what was another."""
    again = retrain(ticket, seed=2, data="digits", lr=1e-3)
    assert list(again.snapshots) == ["init", "20it", "final"]
    assert again.results["point"] == "20it"
    assert again.recipe["retrained"] == {"start": "20it", "seed": 2, "data": "digits", "lr": 1e-3}
    assert retrain(again).results["loss"] == ticket.results["loss"]
    assert retrain(again).digest() != ticket.digest()
    with pytest.raises(ArgumentError, match="'20it' stands at step 20: steps must be more, got 20"):
        retrain(ticket, steps=20)
    with pytest.raises(ArgumentError, match="unknown data set 'diggits'; did you mean 'digits'"):
        retrain(ticket, data="diggits")
    with pytest.raises(ArgumentError, match="unknown key 'stepz'; did you mean 'steps'"):
        retrain(ticket, stepz=3)


def test_networks_of_ones_own_are_checked():
    x, y = torch.randn(90, 6), torch.randint(3, (90,))
    data = Split(x[:80], y[:80], x[80:], y[80:])

    def build(seed):
        return mlp([6, 20, 3], seed=seed)

    spec = SearchSpec(method="snip", density=0.3, net="mine", recipe="p4/lenet", steps=20, samples=5)
    ticket = find_ticket(spec, build=build, data=data)
    found = ticket.check("shuffle", "reinit", "random", "invert", seeds=2, build=build, data=data)
    assert list(found.results) == ["ticket", "shuffle", "reinit", "random", "invert"]
    inverted = find_ticket(spec.model_copy(update={"invert": True}), build=build, data=data)
    back = inverted.check("invert", seeds=[0], build=build, data=data)
    assert back.results["invert"][0]["loss"] == ticket.results["loss"]


def test_refusals(ticket):
    for kinds in (("shuffle",), ("invert",)):
        with pytest.raises(ArgumentError, match=f"none of the controls {kinds[0]} takes scale"):
            ticket.check(*kinds, scale=1.0)
    with pytest.raises(ArgumentError, match="unknown control 'shufle'; did you mean 'shuffle'"):
        ticket.check("shufle")
    with pytest.raises(ArgumentError, match="invert is for random, magnitude"):
        ticket.check("invert")
    with pytest.raises(ArgumentError, match="seeds must be"):
        ticket.check(seeds=0)
    with pytest.raises(ArgumentError, match="no rewind point '7it', only init, 20it, final"):
        ticket.check(rewind="7it")
    bare = Ticket(ticket.masks, ticket.snapshots)
    with pytest.raises(ArgumentError, match="does not say how it was found"):
        check_ticket(bare)
    foreign = Ticket(
        ticket.masks,
        ticket.snapshots,
        dict(ticket.recipe) | {"search": {**ticket.recipe["search"], "net": "conv-2"}},
    )
    with pytest.raises(ArgumentError, match="the ticket is of another network: it lacks"):
        check_ticket(foreign)
    with pytest.raises(ArgumentError, match="at least 2 different learning rates and 3 seeds"):
        judge(SearchSpec(method="imp", **FIELDS), [1e-3], seeds=3)
    with pytest.raises(ArgumentError, match="at least 2 different learning rates and 3 seeds"):
        judge(SearchSpec(method="imp", **FIELDS), [1e-3, 1e-3], seeds=2)


@pytest.mark.parametrize("method", ["imp", "snip"])
def test_a_verdict_trains_every_arm_at_every_rate(method):
    fields = FIELDS | {"steps": 40}
    judged = judge(SearchSpec(method=method, **fields), [1e-5, 1.2e-3], seeds=3)
    arms = ("ticket", "reinit", "dense", "small-dense", *(["omp"] if method == "imp" else []))
    assert {arm: {lr: len(rows) for lr, rows in by.items()} for arm, by in judged.rows.items()} == {
        arm: {1e-5: 3, 1.2e-3: 3} for arm in arms
    }
    for arm in ("ticket", "reinit"):  # at a rate that moves nothing the largest stay the largest
        values = judged.correlation[arm]
        assert all(value > 0.9 for value in values[1e-5])
        assert all(0.1 < value < min(values[1e-5]) for value in values[1.2e-3])
    lines = judged.lines()
    assert [line[:6] for line in lines[-2:]] == ["R_p of"] * 2
    assert (judged.verdict.one_shot is not None) == (method == "imp") == lines[-3].startswith("OMP: ")
    assert judged.density == judged.tickets[1e-5, 0].density()
    assert [c.number for c in judged.verdict.conditions] == [1, 2, 3, 4, 5]
    means = {lr: sum(r["accuracy"] for r in rows) for lr, rows in judged.rows["dense"].items()}
    assert means[1e-5] < means[1.2e-3]
    if method == "imp":
        once = find_ticket(SearchSpec(method="imp", seed=2, lr=1.2e-3, one_shot=True, **fields))
        assert judged.rows["omp"][1.2e-3][2] == once.results
        assert once.density() == judged.density
        last = judged.tickets[1.2e-3, 2]
        assert judged.correlation["ticket"][1.2e-3][2] == correlation_indicator(
            last.snapshots["init"], last.snapshots["final"], last.masks
        )
    else:  # its dense network is trained on its own, imp's is the first level
        dense = find_ticket(SearchSpec(method="imp", seed=1, lr=1e-5, **fields)).results["levels"][0]
        assert judged.rows["dense"][1e-5][1]["accuracy"] == dense["accuracy"]


def test_a_verdict_is_refused_before_it_trains(monkeypatch):
    def work(*given, **more):
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr("lotterykit.experiments.judge.run_together", work)
    fields = FIELDS | {"method": "magnitude"}
    for spec, rates, message in (
        (SearchSpec(**fields, net="resnet-20"), [1e-3, 1e-2], "residual networks have no single width"),
        (SearchSpec(**fields | {"method": "imp"}, after="fine-tune"), [1e-3, 1e-2], "with after 'fine-tune'"),
        (SearchSpec(**fields | {"method": "imp"}, after="learning-rate"), [1e-3, 1e-2], "trained before"),
        (SearchSpec(**fields, shots=2, reset="never"), [1e-3, 1e-2], "with reset 'never' its weights"),
        (SearchSpec(**fields), [0.0, 1e-2], "learning rates must be finite numbers above 0, got 0.0"),
        (SearchSpec(**fields), [1e-2, float("inf")], "learning rates must be finite numbers above 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            judge(spec, rates)
    monkeypatch.setattr("lotterykit.experiments.judge.SIMILAR", {"mnist": 0.005})
    with pytest.raises(ArgumentError, match="unknown data set 'digits'"):
        judge(SearchSpec(**fields), [1e-3, 1e-2])


def test_a_verdict_on_close_rates_and_tickets_of_different_densities(tmp_path):
    """GEM-MINER(0) finds its density: the densest ticket decides. Rates that agree in six digits are two."""
    spec = SearchSpec(method="gem-miner", density=0.0, data="digits", validation=0, steps=10, score_epochs=1,
                      score_lr=0.0)  # fmt: skip
    before = torch.random.get_rng_state()
    rates = [1e-3, 1.0000001e-3]
    judged = judge(spec, rates, folder=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(judged.rows[arm][lr]) == 3 for arm in judged.rows for lr in rates)
    densities = [ticket.density() for ticket in judged.tickets.values()]
    assert min(densities) < max(densities) == judged.density
    assert {f.name for f in tmp_path.iterdir()} > {"0.001-0", "0.0010000001-0", "small-dense-0.001-2"}


def test_narrowed_networks():
    vgg = narrowed(network("vgg-16-bn"), [3, *range(2, 15), 10])
    assert vgg(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert [m.num_features for m in vgg if isinstance(m, nn.BatchNorm2d)] == list(range(2, 15))
    conv = narrowed(network("conv-4", input=(1, 28, 28)), [1, 3, 4, 5, 6, 7, 8, 10])
    assert conv(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert narrowed(mlp([4, 9, 3]), [4, 2, 3])(torch.zeros(1, 4)).shape == (1, 3)
    with pytest.raises(ArgumentError, match="widths must be 3 numbers"):
        narrowed(mlp([4, 9, 3]), [4, 3])
    with pytest.raises(ArgumentError, match="is none: residual networks have no single width"):
        narrowed(network("resnet-20"), [3, 10])
