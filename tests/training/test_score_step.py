"""Gem-Miner's step in one launch: what the hooks and the optimizer do, and only where it is the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lotterykit.training import score_step
from lotterykit.training.score_step import step_scores_
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.scored_module import ScoredTraining

TRAINING = ScoreTraining("gem-miner", 0.3, penalty=1e-2, freeze_every=1)


def network(last: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4))
    return model.to(memory_format=torch.channels_last) if last else model


def trained(training: ScoreTraining = TRAINING, *, last: bool = False, **options: object) -> tuple:
    """The scores, and the optimizer's state, after three epochs of four steps; gradients stay to be seen."""
    model = network(last)
    run = ScoredTraining(model, training, 3)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, **{"lr": 0.1, "momentum": 0.9} | options))
    generator = torch.Generator().manual_seed(1)
    for epoch in range(3):
        run.begin(epoch)
        for _ in range(4):
            optimizer.zero_grad()
            x = torch.randn(6, 3, 4, 4, generator=generator)
            nn.functional.cross_entropy(model(x), torch.arange(6) % 4).backward()
            optimizer.step()
            assert all(p.grad is not None for p in run.parameters)
    return list(run.scores.values()), optimizer.state_dict()["state"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 1e-2}, {"momentum": 0.5}])
def test_one_launch_does_what_hooks_and_optimizer_do(monkeypatch, options, last):
    plain, plain_state = trained(last=last, **options)
    monkeypatch.setattr(score_step, "_is_served", lambda layer: layer.weight_score.grad is not None)
    monkeypatch.setattr(torch.optim.SGD, "_init_group", only_without_gradients(torch.optim.SGD._init_group))
    fused, fused_state = trained(last=last, **options)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_state, plain_state, rtol=1e-5, atol=1e-6)
    assert any((p == 0).any() for p in fused)  # something was frozen


def test_a_loaded_momentum_may_lie_otherwise(monkeypatch):
    """As after a file, of which channels-last tensors come back contiguous."""
    found = []
    for contiguous in (False, True):
        monkeypatch.setattr(score_step, "_is_served", lambda layer: layer.weight_score.grad is not None)
        model = network(last=True)
        run = ScoredTraining(model, TRAINING, 3)
        optimizer = run.attach_(torch.optim.SGD(run.parameters, lr=0.1, momentum=0.9))
        for step in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.ones(6, 3, 4, 4)), torch.arange(6) % 4).backward()
            optimizer.step()
            if contiguous and not step:
                for state in optimizer.state.values():
                    state["momentum_buffer"] = state["momentum_buffer"].contiguous()
        found.append(run.scores | {"momentum": optimizer.state[run.parameters[0]]["momentum_buffer"]})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def only_without_gradients(real):
    """SGD's own look at a group, which must find nothing left to do."""

    def look(self, group, *lists):
        assert all(p.grad is None for p in group["params"])
        return real(self, group, *lists)

    return look


def refused(training: ScoreTraining, make) -> bool:
    model = network()
    run = ScoredTraining(model, training, 3)
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    return step_scores_(make(run.parameters), run.layers.values(), training) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p),
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.1),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, maximize=True),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, fused=True),
        lambda p: torch.optim.SGD(p, torch.tensor(0.1), 0.9),
    ],
)
def test_other_optimizers_step_themselves(monkeypatch, make):
    monkeypatch.setattr(score_step, "_is_served", lambda layer: True)
    assert refused(TRAINING, make)
    assert not refused(TRAINING, lambda p: torch.optim.SGD(p, 0.1, 0.9))


def test_other_trainings_and_plain_torch_are_left_to_the_optimizer(monkeypatch):
    make = lambda p: torch.optim.SGD(p, 0.1, 0.9)  # noqa: E731
    assert refused(TRAINING, make)  # on a CPU no kernel serves the step
    monkeypatch.setattr(score_step, "_is_served", lambda layer: True)
    assert refused(ScoreTraining(density=0.5), make)
    assert refused(ScoreTraining("gem-miner", penalty=1e-2, penalty_norm=1), make)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_brings_gradients_of_its_own(monkeypatch, by_name):
    def stepped(*_):
        raise AssertionError("stepped by gradients that the closure is about to replace")

    monkeypatch.setattr("lotterykit.training.scored_module.step_scores_", stepped)
    run = ScoredTraining(model := network(), TRAINING, 3)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 0.1, 0.9))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3, 4, 4)).sum()
        loss.backward()
        return loss

    before = run.scores
    optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), run.scores.values(), strict=True))


INTERPRETED = """
import torch
from lotterykit.kernels import multi_tensor
from lotterykit.ops.dispatch import use_backend
from test_score_step import trained
calls, real = [], multi_tensor.gem_miner_step
multi_tensor.gem_miner_step = lambda *a: (calls.append(len(a[0])), real(*a))
for last in (False, True):
    with use_backend("reference", ops=["gem_miner_step"]):
        plain, state = trained(last=last)
    assert calls == [], calls
    with use_backend("triton", ops=["gem_miner_step"]):
        fused, fused_state = trained(last=last)
    assert calls == [2] * 12, calls
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_state, state, rtol=1e-5, atol=1e-6)
    calls.clear()
with use_backend("cpu", ops=["gem_miner_step"]):
    trained()
print("done")
"""


def test_training_through_the_kernel_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "done" in done.stdout, done.stderr[-3000:]
