import json

import numpy as np
import pytest
import torch

from lotterykit.nn.models import mlp
from lotterykit.planting.hiding import hiding
from lotterykit.planting.plant import plant
from lotterykit.planting.targets import circle


def test_report():
    target, mother = circle(5), mlp([2, 100, 100, 100, 4], dtype=torch.float64)
    planted = plant(target, mother, gain=0.5)
    assert json.loads(json.dumps(planted.report)) == planted.report
    assert set(planted.report) == {f"{i}.weight" for i in (0, 2, 4, 6)} | {"4.bias", "6.bias"}
    for name, row in planted.report.items():
        values, mask = planted.network.get_parameter(name).detach().abs(), planted.ticket[name]
        sigma = mother.get_parameter(name).detach().square().mean().sqrt()
        assert row["max_sigma"] == pytest.approx(float(values[mask].max() / sigma))
        assert row["median_sigma"] == pytest.approx(float(np.median(values[mask]) / sigma))
        if not bool(mask.all()):
            inside, outside = values[mask][:, None], values[~mask][None, :]
            wins = (inside > outside).double() + 0.5 * (inside == outside).double()
            assert row["auc"] == pytest.approx(float(wins.mean()))
    assert planted.report["6.bias"]["auc"] is None, "all four output biases are planted"


def test_hiding_counts_ties_half():
    mother = torch.tensor([1.0, -1.0, 1.0, 2.0])
    row = hiding(mother, mother, torch.tensor([True, False, False, True]))
    assert row["auc"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert hiding(torch.zeros(2), torch.ones(2), torch.tensor([True, False]))["max_sigma"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "large", "small", "zero", "levels"])
def test_the_auc_of_large_tensors_is_the_counted_one(dtype, kind):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20_000, generator=generator)
    mask = torch.rand(20_000, generator=generator) < 0.002
    if kind in ("large", "small"):  # all kept in one cell, or near the smallest number there is
        x[mask] *= 1e3 if kind == "large" else float(torch.finfo(dtype).tiny)
    elif kind == "zero":
        x[mask] = 0.0
    elif kind == "levels":
        x = (x * 3).round()
    x = x.to(dtype)
    inside, outside = x.double().abs()[mask][:, None], x.double().abs()[~mask][None]
    wins = (inside > outside).double() + 0.5 * (inside == outside).double()
    assert hiding(x, x, mask)["auc"] == pytest.approx(float(wins.mean()), rel=1e-12)
