"""Problems of many steps: trainings and SynFlow's rounds, refused where a peer goes another way."""

import dataclasses

import pytest
import torch

from lotterykit import plant, targets
from lotterykit.bench import peers, replicas, synflow
from lotterykit.bench.contender import Contender
from lotterykit.bench.kernels import entries_of, measure
from lotterykit.bench.peers import Peer
from lotterykit.bench.problems import OPS
from lotterykit.bench.setting import Setting
from lotterykit.nn.models import mlp

STEPS = {
    "replicas": Setting("replicas", (1, 5, 2), 0.5, "random"),
    "scores": Setting("scores", (1, 5, 2), 0.5, "edge-popup"),
}
ROUNDS = Setting("synflow", (12, 9, 5), 0.2, "rounds")
SCORES = Setting("synflow-scores", (12, 9, 5), 0.5, "scores")


def refused(monkeypatch, setting, build):
    monkeypatch.setitem(peers.PEERS, "wrong", Peer("spoilt", {setting.op: build}))
    row = measure(setting, entries_of(setting.op, ["wrong"]), repeats=1)
    assert "wrong" not in row["us"]
    return row["refused"]["wrong"]


def test_the_tickets_shape_is_that_of_a_planted_circle():
    planted = plant(targets.circle(5), mlp([2, 100, 100, 100, 4], seed=0), seed=0)
    for seed in range(3):
        found = replicas.ticket_masks(100, torch.Generator().manual_seed(seed))
        assert list(found) == list(planted.ticket)
        for name, mask in planted.ticket.items():
            assert mask.shape == found[name].shape
            for dim in range(mask.dim()):
                ours, theirs = (m.sum(dim).sort().values for m in (found[name], mask))
                assert torch.equal(ours, theirs), (name, dim)
    assert replicas.ticket_density((1, 100, 1)) == pytest.approx(108 / 20600)
    narrow = replicas.ticket_masks(1, torch.Generator())
    assert all(bool(mask.any()) for name, mask in narrow.items() if "weight" in name)


@pytest.mark.parametrize("op", STEPS)
def test_a_training_that_goes_another_way_is_refused(monkeypatch, op):
    def build(problem):
        training = problem.inputs
        faster = [
            dataclasses.replace(s, recipe=dataclasses.replace(s.recipe, lr=2e-3)) for s in training.checked
        ]
        spoilt = dataclasses.replace(problem, inputs=dataclasses.replace(training, checked=faster))
        return replicas.eager_training(spoilt)

    assert "differs from the batched engine's after 20 steps" in refused(monkeypatch, STEPS[op], build)


def test_a_training_that_ends_in_nan_is_refused(monkeypatch):
    def build(problem):
        right = replicas.eager_training(problem)
        return Contender(lambda: [t * torch.nan for t in right.run()], right.outputs, right.steps)

    assert refused(monkeypatch, STEPS["replicas"], build) == "wrong: training leaves infinities or NaN"


def test_masks_of_another_method_are_refused(monkeypatch):
    def build(problem):
        weights = problem.inputs.weights
        k = round(problem.setting.density * sum(w.numel() for w in weights))
        least = torch.cat([w.abs().flatten() for w in weights]).topk(k).values.min()
        return Contender(lambda: [w.abs() >= least for w in weights])

    assert "that float64 keeps" in refused(monkeypatch, ROUNDS, build)


def test_scores_that_are_not_exact_are_refused(monkeypatch):
    def build(problem):
        right = synflow.native_scores(problem)
        return Contender(lambda: [s * 1.001 for s in right.run()])

    assert "further from float64" in refused(monkeypatch, SCORES, build)


def test_the_published_rounds_keep_what_the_schedule_says():
    problem = OPS["synflow"].problem(ROUNDS)
    masks = synflow.published_rounds(problem).run()
    total = problem.inputs.total
    assert total == 12 * 9 + 9 * 5
    assert synflow.kept_after(synflow.ROUNDS, 0.2, total) == 31
    assert sum(int(m.sum()) for m in masks) == 31
    assert synflow.kept_after(50, 0.25, 100) == 50
