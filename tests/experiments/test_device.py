"""A sweep that trains on a CUDA device: the device reaches the trainer, the rows and the commands."""

from __future__ import annotations

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.experiments import together
from lotterykit.experiments.display import resume_command
from lotterykit.experiments.spec import CellSpec
from lotterykit.experiments.sweep import RUNNER, Sweep
from lotterykit.experiments.tasks import check_device, device_of, load_runner, runner_on
from lotterykit.ops.dispatch import forced_backend, use_backend
from lotterykit.training.replicas import train_replicas

SMALL = {"task": "relu", "width": 30, "samples": 200, "epochs": 1}


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_device_that_is_not_there_is_refused(device, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ArgumentError, match=r"torch sees no CUDA device|must be 'cpu', 'cuda'") as error:
        Sweep(SMALL, {"method": ["random"], "density": [0.5]}, 1, device=device).run(
            store=tmp_path / "runs.sqlite"
        )
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_runner_tells_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runner_on(RUNNER, "cpu") == RUNNER
    assert device_of(RUNNER) == "cpu"
    assert device_of(runner_on(RUNNER, "cuda:1")) == "cuda:1"
    assert load_runner(runner_on(RUNNER, "cuda:1")).keywords == {"device": "cuda:1"}
    with pytest.raises(ArgumentError, match="torch sees 2 CUDA device"):
        check_device("cuda:2")
    assert resume_command("a b", "cuda") == "lotterykit sweep resume 'a b' --device cuda"


def test_a_sweep_trains_on_its_device_and_says_so(monkeypatch, tmp_path):
    """The trainer is replaced by one that notes what it was asked for and computes on the CPU."""
    asked = []

    def train(specs, *, device, progress):
        op = "train_replicas" if specs[0].scores is None else "train_scores"
        asked.append((op, device, forced_backend(op)))
        with use_backend("auto"):
            return train_replicas(specs, progress=progress)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"pretended {device}")
    monkeypatch.setattr(together, "train_replicas", train)
    popup = {"pipeline": "edge-popup", "method": "edge-popup", "score_epochs": 1}
    cells = [CellSpec(**SMALL, density=0.5, **how) for how in ({"method": "random"}, popup)]
    result = Sweep.of(cells, device="cuda").run("inline", 1, tmp_path / "runs.sqlite")
    assert result.failed == []
    assert ("train_replicas", "cuda", "cuda") in asked
    assert ("train_scores", "cuda", "cuda") in asked
    assert [row["versions"]["cuda"] for row in result.rows] == ["pretended cuda"] * 2
    plain = Sweep.of(cells).run("inline", 1, tmp_path / "plain.sqlite")
    assert all("cuda" not in row["versions"] for row in plain.rows)
    assert [row["metrics"] for row in plain.rows] == [row["metrics"] for row in result.rows]
