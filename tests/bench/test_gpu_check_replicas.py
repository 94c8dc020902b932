"""The GPU check's stages of the replica trainer without a GPU: on the CPU's engine, with small tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lotterykit.bench import gpu_checks_replicas, gpu_goals_replicas
from lotterykit.ops import dispatch
from lotterykit.training.recipe import batch_order
from lotterykit.training.replicas import train_replicas

BACKEND = "cpu" if dispatch.missing("cpu") is None else "reference"


def test_the_check_passes_on_the_cpu_and_sees_a_wrong_trainer(monkeypatch):
    monkeypatch.setattr(gpu_checks_replicas, "SHAPES", ((2, 20, 20, 4), (1, 1), (3, 21, 17, 4)))
    assert gpu_checks_replicas.check_replicas(4, device="cpu", backend=BACKEND) == []
    right = gpu_checks_replicas.train_replicas

    def late(specs, **how):
        """The first of a call is trained with another learning rate."""
        specs = [replace(specs[0], recipe=replace(specs[0].recipe, lr=3e-3)), *specs[1:]]
        return right(specs, **how)

    reference = iter(range(100))
    monkeypatch.setattr(
        gpu_checks_replicas, "train_replicas", lambda s, **k: (right if next(reference) % 3 else late)(s, **k)
    )
    failures = gpu_checks_replicas.check_replicas(2, device="cpu", backend=BACKEND)
    assert any("weights" in failure for failure in failures)
    assert any("company" in failure for failure in failures)


@pytest.mark.parametrize("peer", gpu_goals_replicas.PEERS)
def test_peers_take_the_same_steps(peer):
    """Five steps of every peer equal those of the batched engine on the same batches."""
    specs = gpu_goals_replicas.replica_specs(3, (2, 12, 9, 4), 0.4, 160, 1)
    n = len(specs[0].data.x_train)
    step = gpu_goals_replicas.PEERS[peer](specs, "cpu")
    (networks,) = [c.cell_contents for c in step.__closure__ if hasattr(c.cell_contents, "optimizer")]
    networks.orders = torch.stack([batch_order(n, spec.seed, 0) for spec in specs])
    for _ in range(5):
        step()
    with dispatch.use_backend("reference"):
        expected = train_replicas(specs, steps=5)
    for name, found in networks.masked().items():
        wanted = torch.stack([result.weights[name] for result in expected])
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_the_table_holds_all_peers_and_gives_verdicts():
    tables = []
    gpu_goals_replicas.time_replicas(
        tables.append, replicas=2, layers=(2, 6, 4), samples=64, epochs=2, backend=BACKEND, device="cpu"
    )
    assert set(tables[-1]) == {"density 0.2", "density 0.1", "density 0.01"}
    assert all(set(row) == {"ours", *gpu_goals_replicas.PEERS} for row in tables[-1].values())
    lines = gpu_goals_replicas.verdicts("replicas", tables[-1])
    assert len(lines) == 6
    assert all("holds" in line or "missed" in line for line in lines)
