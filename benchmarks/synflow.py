"""C6: 100 rounds of SynFlow, against the published algorithm in eager torch.

    python benchmarks/synflow.py [--networks lenet,deep,vgg] [--repeats 5] [--vgg-repeats 1]

The peer is Tanaka et al.'s loop: absolute values, one forward and backward pass of an all-ones input, scores,
cat, kthvalue, masks. Before timing, our masks are checked to be those of the float64 reference (on VGG after
3 rounds, by autograd). Both are timed in turns, on one thread; `prune_` includes turning layers into masked
ones. Prints ratios of medians and writes results/<machine>-synflow.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lotterykit.nn.models import mlp
from lotterykit.ops import dispatch
from lotterykit.pruning.prune import Pruner, prune_

RESULTS = Path(__file__).parent / "results"
DENSITY, ROUNDS = 0.01, 100
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


NETWORKS = {
    "lenet": (lambda: mlp([784, 300, 100, 10]), (1, 784)),
    "deep": (lambda: mlp([784, 100, 100, 100, 100, 100, 10]), (1, 784)),
    "vgg": (vgg16_bn, (1, 3, 32, 32)),
}


def published(model: nn.Module, ones: Tensor) -> list[Tensor]:
    """The loop of Tanaka et al.'s code, float32; returns the masks."""
    model = copy.deepcopy(model).eval()
    parameters = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    masks = [torch.ones_like(p) for p in parameters]
    for number in range(1, ROUNDS + 1):
        with torch.no_grad():
            state = [t for t in model.state_dict().values() if t.is_floating_point()]
            signs = [t.sign() for t in state]
            for t in state:
                t.abs_()
        model.zero_grad()
        model(ones).sum().backward()
        found = [(m * p.grad * p).detach().abs_() for m, p in zip(masks, parameters, strict=True)]
        with torch.no_grad():
            for t, sign in zip(state, signs, strict=True):
                t.mul_(sign)
            flat = torch.cat([f.flatten() for f in found])
            dropped = int((1 - DENSITY ** (number / ROUNDS)) * flat.numel())
            threshold = flat.kthvalue(dropped).values if dropped else -1.0
            for m, f, p in zip(masks, found, parameters, strict=True):
                m.copy_(torch.where(f <= threshold, 0.0, 1.0))
                p.mul_(m)
    return masks


def check(name: str, model: nn.Module, ones: Tensor) -> None:
    """Our masks are those of rounds of float64 scores, each selected by `topk_mask`."""
    rounds = 3 if name == "vgg" else ROUNDS
    ours = Pruner(copy.deepcopy(model), "synflow", density=DENSITY, rounds=rounds, example_input=ones)
    with dispatch.use_backend("reference"):
        stepped = Pruner(copy.deepcopy(model), "synflow", density=DENSITY, rounds=rounds, example_input=ones)
        for _ in range(rounds):
            expected = stepped.step()
    found = ours.run()
    if not all(torch.equal(found[key], expected[key]) for key in expected):
        raise SystemExit(f"{name}: masks differ from the float64 reference")


def row_of(name: str, repeats: int) -> dict:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, ones = make(), torch.ones(shape)
    check(name, model, ones)
    times: dict[str, list[float]] = {"published": [], "lotterykit": []}
    for _ in range(repeats):
        start = time.perf_counter()
        published(model, ones)
        times["published"].append(time.perf_counter() - start)
        for _ in range(1 if name == "vgg" else 3):
            copied = copy.deepcopy(model)
            start = time.perf_counter()
            prune_(copied, "synflow", density=DENSITY, rounds=ROUNDS, example_input=ones)
            times["lotterykit"].append(time.perf_counter() - start)
    medians = {peer: statistics.median(t) for peer, t in times.items()}
    ratio = medians["published"] / medians["lotterykit"]
    shown = "  ".join(f"{peer} {1e3 * t:.1f} ms" for peer, t in medians.items())
    print(f"{name:>6}  {shown}  ratio {ratio:.1f}", flush=True)
    weights = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))
    return {"network": name, "weights": weights, "seconds": medians, "ratio": ratio, "repeats": repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="lenet,deep,vgg")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vgg-repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability().lower()}"
    print(f"torch {torch.__version__}, {machine}, 1 thread, density {DENSITY}, {ROUNDS} rounds")
    rows = [
        row_of(name, options.vgg_repeats if name == "vgg" else options.repeats)
        for name in options.networks.split(",")
    ]
    head = {"torch": torch.__version__, "python": platform.python_version(), "machine": machine}
    head |= {"threads": 1, "density": DENSITY, "rounds": ROUNDS, "statistic": "median"}
    path = RESULTS / f"{machine}-synflow.json"
    path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
