"""C6: 100 rounds of SynFlow, against the published algorithm in eager torch.

    python benchmarks/synflow.py [--shapes 784x300x100x10] [--repeats 5] [--vgg-repeats 1]

Chains of these widths to density .01 and one scoring of them are `lotterykit bench synflow` and
`synflow-scores`. VGG-16-BN on 3 x 32 x 32 goes through `lotterykit.prune_`, its turning of layers into masked
ones included; before timing, its masks after 3 rounds are compared with those of the float64 reference
(--vgg-repeats 0 leaves it out: a call of the peer takes a minute). One thread, float32. Writes
results/<machine>-synflow.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit.bench import results
from lotterykit.bench.kernels import check_repeats, entries_of, grid, measure_all
from lotterykit.bench.setting import Setting
from lotterykit.bench.synflow import ROUNDS, published
from lotterykit.bench.tables import show_rows
from lotterykit.bench.timing import alternate
from lotterykit.ops import dispatch
from lotterykit.pruning.prune import Pruner, prune_

RESULTS = Path(__file__).parent / "results"
DENSITY = 0.01
CHAINS = "784x300x100x10,784x100x100x100x100x100x10"
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def vgg16_bn() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 10))


def check(model: nn.Module, ones: Tensor, rounds: int = 3) -> None:
    """Our masks are those of rounds of float64 scores, each selected by `topk_mask`."""
    ours = Pruner(copy.deepcopy(model), "synflow", density=DENSITY, rounds=rounds, example_input=ones)
    with dispatch.use_backend("reference"):
        stepped = Pruner(copy.deepcopy(model), "synflow", density=DENSITY, rounds=rounds, example_input=ones)
        for _ in range(rounds):
            expected = stepped.step()
    found = ours.run()
    if not all(torch.equal(found[key], expected[key]) for key in expected):
        raise SystemExit("VGG-16-BN: masks differ from the float64 reference")


def vgg_row(repeats: int, clock: str) -> dict[str, Any]:
    """The row of VGG-16-BN, as `lotterykit.bench.kernels.measure` makes it."""
    torch.manual_seed(0)
    model, ones = vgg16_bn().eval(), torch.ones(1, 3, 32, 32)
    check(model, ones)

    def ours() -> None:
        prune_(copy.deepcopy(model), "synflow", density=DENSITY, rounds=ROUNDS, example_input=ones)

    def theirs() -> None:
        copied = copy.deepcopy(model)
        weights = [m.weight for m in copied.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        state = [t for t in copied.state_dict().values() if t.is_floating_point()]
        published(lambda: copied(ones), weights, state, DENSITY)

    timings = alternate({"prune_": ours, "published": theirs}, repeats=repeats, clock=clock)
    us = {name: timing.as_dict() for name, timing in timings.items()}
    ratio = timings["published"].median / timings["prune_"].median
    setting = Setting("synflow-vgg16-bn", (3, 32, 32), DENSITY, "rounds").as_dict()
    return setting | {
        "clock": clock,
        "us": us,
        "refused": {},
        "ours": "prune_",
        "ratio": {"published": ratio},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=CHAINS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vgg-repeats", type=int, default=1)
    parser.add_argument("--clock", default="wall", help="cpu: CPU time, where the machine is shared")
    options = parser.parse_args()
    check_repeats(options.repeats)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for op in ("synflow", "synflow-scores"):
        settings = grid(op, shapes=options.shapes.split(","), densities=[DENSITY])
        rows += measure_all(settings, entries_of(op), repeats=options.repeats, clock=options.clock)
    if options.vgg_repeats:
        check_repeats(options.vgg_repeats)
        rows.append(vgg_row(options.vgg_repeats, options.clock))
    show_rows(rows)
    path = RESULTS / f"{results.machine()}-synflow.json"
    results.write(path, results.document(rows, repeats=options.repeats))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
