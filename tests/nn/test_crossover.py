"""`format="auto"`: the table, its evidence, and what layers say of the choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lotterykit.bench import gpu_crossover
from lotterykit.bench.evidence import unfounded
from lotterykit.nn.convert import convert_, revert_
from lotterykit.nn.crossover import choose
from lotterykit.nn.masked import MaskedLinear
from lotterykit.ops import crossovers, dispatch
from lotterykit.ops.crossovers import CROSSOVERS, EVIDENCE, Crossover
from lotterykit.ops.routes import ROUTES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", CROSSOVERS)
def test_every_row_is_borne_out_by_the_file_that_it_cites(row) -> None:
    assert (row.density is None) == (row.evidence is None)
    if row.evidence is None:
        assert row.device == "cuda"
        return
    document = json.loads((ROOT / row.evidence).read_text())
    if row.device == "cpu":
        assert unfounded(row, document["rows"]) is None
        return
    assert gpu_crossover.unfounded(row, document["results"]) is None
    # what is chosen must be served without being forced
    served = [r for r in ROUTES if r.op in ("spmm", "sddmm") and r.backend == "cuda"]
    assert all(r.evidence is not None for r in served)


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
        (nn.Linear, 2048 * 2048, 0.01, "cuda", torch.bfloat16, "masked", "in bfloat16 on cuda is not yet"),
        (nn.Linear, 2048 * 2048, 0.01, "cuda", torch.float16, "masked", "in float16 on cuda is not yet"),
        (nn.Conv2d, 2048 * 2048, 0.01, "cuda", torch.bfloat16, "masked", "conv2d layers are faster in bf"),
        (nn.Linear, 2048 * 2048, 0.01, "mps", torch.float32, "masked", "not float32 on mps"),
        (nn.Linear, 2048 * 2048, None, "cpu", torch.float32, "masked", "cannot be counted"),
        (nn.Conv3d, 2048 * 2048, 0.01, "cpu", torch.float32, "masked", "no measurement of sparse conv3d"),
    ],
)
def test_choice(monkeypatch, plain, weights, density, device, dtype, format, words) -> None:
    monkeypatch.setattr("lotterykit.nn.crossover.missing", lambda backend: None)
    chosen, reason = choose(plain, weights, density, device, dtype)
    assert chosen == format
    assert words in reason


def test_a_row_of_a_gpu_decides_once_it_has_numbers(monkeypatch) -> None:
    monkeypatch.setattr("lotterykit.nn.crossover.missing", lambda backend: None)
    rows = (
        *CROSSOVERS[:2],
        Crossover("linear", 2**20, 0.04, "file.json", "cuda", ("bfloat16",)),
        Crossover("linear", 2**20, 0.1, "file.json", "cuda", ("tf32",)),
        Crossover("linear", 2**20, None, None, "cuda", ("float32",)),
    )
    monkeypatch.setattr(crossovers, "CROSSOVERS", rows)

    def chosen(density: float, dtype: torch.dtype, weights: int = 2**20) -> tuple[str, str]:
        return choose(nn.Linear, weights, density, "cuda", dtype)

    assert chosen(0.04, torch.bfloat16)[0] == "sparse"
    assert chosen(0.05, torch.bfloat16) == (
        "masked",
        "linear of 1048576 weights at density 0.05, sparse is measured faster up to 0.04",
    )
    assert "from 1048576 weights on" in chosen(0.01, torch.bfloat16, 2**19)[1]
    monkeypatch.setattr(crossovers, "tf32_allowed", lambda: False)
    assert "in float32 on cuda is not yet measured" in chosen(0.05, torch.float32)[1]
    monkeypatch.setattr(crossovers, "tf32_allowed", lambda: True)
    assert chosen(0.05, torch.float32)[0] == "sparse"


def test_explain_tells_the_format_too() -> None:
    weight, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    last = dispatch.explain("masked_linear", torch.ones(1, 3), weight, mask).splitlines()[-1]
    assert last == f"  layers of format='auto': sparse from 65536 weights on up to density 0.3 ({EVIDENCE})"
    assert crossovers.told("spmm", "cuda", torch.bfloat16) == (
        "masked; up to which density sparse linear layers are faster in bfloat16 on cuda is not yet measured"
    )
    assert "format" not in dispatch.explain("topk_mask", [torch.ones(3)], k=1)


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
