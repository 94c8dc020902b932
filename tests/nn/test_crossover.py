"""`format="auto"`: the table, its evidence, and what layers say of the choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lotterykit.bench.evidence import unfounded
from lotterykit.nn.convert import convert_, revert_
from lotterykit.nn.crossover import CROSSOVERS, choose
from lotterykit.nn.masked import MaskedLinear
from lotterykit.ops import dispatch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", CROSSOVERS)
def test_every_row_is_borne_out_by_the_file_that_it_cites(row) -> None:
    assert unfounded(row, json.loads((ROOT / row.evidence).read_text())["rows"]) is None


def test_a_file_that_does_not_bear_a_row_out_is_told() -> None:
    row = CROSSOVERS[0]
    rows = json.loads((ROOT / row.evidence).read_text())["rows"]
    assert "is faster than sparse at" in str(unfounded(row._replace(density=0.5), rows))
    assert "measured with batches []" in str(unfounded(row._replace(weights=row.weights + 1), rows))


@pytest.mark.parametrize(
    ("plain", "weights", "density", "device", "dtype", "format", "words"),
    [
        (nn.Linear, 100 * 100, 0.01, "cpu", torch.float32, "masked", "from 65536 weights on"),
        (nn.Linear, 256 * 256, 0.1, "cpu", torch.float32, "sparse", "layers.json"),
        (nn.Linear, 256 * 256, 0.4, "cpu", torch.float32, "masked", "up to 0.3"),
        (nn.Conv2d, 16 * 16 * 9, 0.1, "cpu", torch.float32, "sparse", "layers.json"),
        (nn.Conv2d, 512 * 512 * 9, 0.2, "cpu", torch.float32, "masked", "up to 0.1"),
        (nn.Conv2d, 8 * 8 * 9, 0.01, "cpu", torch.float32, "masked", "from 2304 weights on"),
        (nn.Linear, 2048 * 2048, 0.2, "cpu", torch.float64, "sparse", "up to 0.3"),
        (nn.Linear, 2048 * 2048, 0.5, "cpu", torch.float32, "masked", "up to 0.3"),
        (nn.Linear, 2048 * 2048, 0.01, "cpu", torch.bfloat16, "masked", "not bfloat16 on cpu"),
        (nn.Linear, 2048 * 2048, 0.01, "cuda", torch.float32, "masked", "float32 on cuda"),
        (nn.Linear, 2048 * 2048, None, "cpu", torch.float32, "masked", "cannot be counted"),
        (nn.Conv3d, 2048 * 2048, 0.01, "cpu", torch.float32, "masked", "no measurement of sparse conv3d"),
    ],
)
def test_choice(monkeypatch, plain, weights, density, device, dtype, format, words) -> None:
    monkeypatch.setattr("lotterykit.nn.crossover.missing", lambda backend: None)
    chosen, reason = choose(plain, weights, density, device, dtype)
    assert chosen == format
    assert words in reason


def test_without_native_code_layers_stay_masked(monkeypatch) -> None:
    monkeypatch.setattr("lotterykit.nn.crossover.missing", lambda backend: "not built")
    assert choose(nn.Linear, 2048 * 2048, 0.01, "cpu", torch.float32) == ("masked", "not built")


@pytest.mark.skipif(dispatch.missing("cpu") is not None, reason="needs the native module")
def test_layers_tell_what_was_chosen() -> None:
    tied, embedding = nn.Linear(256, 300, bias=False), nn.Embedding(300, 256)
    tied.weight = embedding.weight
    model = nn.ModuleList([nn.Linear(256, 256), nn.Linear(100, 100), nn.Conv3d(1, 1, 1), tied, embedding])
    masks = {f"{i}.weight": torch.zeros_like(model[i].weight, dtype=torch.bool) for i in (0, 1, 2, 3)}
    convert_(model, masks=masks, format="auto")
    assert [layer.format for layer in model[:4]] == ["sparse", "masked", "masked", "masked"]
    assert "auto: linear of 65536 weights at density 0, measured faster up to 0.3" in repr(model[0])
    assert "has no sparse form" in repr(model[2])
    assert "shared by '3', '4'" in model[3].format_reason
    convert_(model, filter_fn=lambda name, _: name == "0", format="auto")  # from its own mask this time
    assert model[0].format == "sparse"
    revert_(convert_(model, filter_fn=lambda name, _: name == "0"))
    assert not any("auto" in repr(layer) or "format_reason" in vars(layer) for layer in model)
    assert MaskedLinear(2000, 2000, format="auto").format == "masked"  # every weight is kept
