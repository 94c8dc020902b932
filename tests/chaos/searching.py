"""A search in a process of its own that meets with trouble: `python searching.py ORDER`, as JSON.

ORDER: folder (of the journal), out (file of the ticket), kind (of NETWORKS), and at most one trouble: at, nth
(see `Point`); bytes (see `limit_files`). It says on stdout which trainings begin ("begin NUMBER").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trouble

PIECE = 20  # steps between two writes of the journal: many, so that most kills fall within a training


def watched() -> list[str]:
    """The files whose lines are points: all that write and read a journal."""
    from lotterykit import mask
    from lotterykit.experiments import searches, trainings

    return [str(module.__file__) for module in (mask, searches, trainings)]


def convolutional(seed: int) -> Any:
    """A network that no replica can be: batch-norm has buffers, dropout draws at every step."""
    import torch
    from torch import nn

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(4 * 64, 10),
        )  # fmt: skip


NETWORKS = {
    "replicas": ({"lr": 0.01}, None),
    "modules": ({"net": "mine", "recipe": "p4/lenet"}, convolutional),
}


def main() -> None:
    from lotterykit.experiments import trainings
    from lotterykit.experiments.find import find_ticket
    from lotterykit.experiments.search_spec import SearchSpec

    order = json.loads(sys.argv[1])
    trainings.PIECE = PIECE
    fields, build = NETWORKS[order["kind"]]
    spec = SearchSpec(
        method="imp", density=0.4, prune_fraction=0.5, rewind="30it", steps=130, batch_size=40,
        data="digits", validation=100, **fields,
    )  # fmt: skip
    point = trouble.Point(order.get("at"), order.get("nth", 1))
    trouble.say("ready", spec.method)
    if "bytes" in order:
        trouble.limit_files(order["bytes"], deadly=True)
    if "at" in order or "note" in order:
        trouble.watch(watched(), point)
    ticket = find_ticket(
        spec,
        build=build,
        folder=Path(order["folder"]),
        progress=lambda name, number, training: trouble.say("begin", number),
    )
    sys.settrace(None)
    ticket.save(order["out"])
    if "note" in order:
        Path(order["note"]).write_text(json.dumps(point.counts))


if __name__ == "__main__":
    main()
