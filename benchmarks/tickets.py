"""Lottery tickets of LeNet-300-100 on Fashion-MNIST: which of the papers' patterns appear.

    python benchmarks/tickets.py [levels methods verdict conv] [--seeds 3] [--steps 10000]

levels: iterative magnitude pruning to .01, each level's ticket against its mask with new weights (reinit),
its layers' counts at random places (shuffle), a random ticket (Lottery Ticket Hypothesis, Figs. 3, 4, 14).
methods: pruning at init and score training at six densities, each against shuffle, reinit and inverted scores
(Rare Gems, Fig. 3). verdict: jackpot, secondary prize or no ticket over learning rates (Sanity Checks).
conv: Conv-2, a few levels. Writes results/tickets/<stage>.csv and .png; what was trained stands in --folder,
from which a study that was stopped goes on. The paper trains 50,000 iterations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lotterykit.experiments.check import trained
from lotterykit.experiments.controls import control
from lotterykit.experiments.find import find_tickets
from lotterykit.experiments.judge import judge
from lotterykit.experiments.resolved import resolve
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.searches import run_together
from lotterykit.experiments.ticket import INIT, Ticket
from lotterykit.experiments.trainings import Training
from lotterykit.training.single import train

RESULTS = Path(__file__).parent / "results" / "tickets"
CONTROLS = ("reinit", "shuffle", "random")
METHODS = ("snip", "grasp", "synflow", "magnitude", "random", "edge-popup", "gem-miner")
SCORED = ("edge-popup", "gem-miner")
RATES = (3e-4, 1.2e-3, 5e-3)
COLUMNS = (
    "method", "control", "lr", "seed", "level", "density", "accuracy", "loss", "stop_step", "stop_accuracy",
    "stop_loss", "untrained", "epochs",
)  # fmt: skip
EPOCH = 430  # steps of score training, batches of 128 of 55,000 images
TRAINED = {"steps": 0}  # of what the journal did not have whole
Row = dict[str, Any]


def row_of(results: Any, **more: Any) -> Row:
    """A row of the CSV from a ticket's results."""
    found = {name: results.get(name, "") for name in COLUMNS} | more
    untrained = results.get("untrained")
    return found | {"untrained": "" if untrained is None else untrained["accuracy"]}


def tell(name: str, number: int, training: Training) -> None:
    end = training.last if training.last is not None else training.recipe.epochs * EPOCH
    TRAINED["steps"] += end - training.first
    print(f"{time.strftime('%T')} {name} {number} density {training.masks.density():.4g}", flush=True)


def levels(options: argparse.Namespace) -> Iterable[Row]:
    """IMP to .01, then every level's controls."""
    base = SearchSpec(method="imp", density=0.01, steps=options.steps)
    specs = {f"imp-{seed}": base.model_copy(update={"seed": seed}) for seed in range(options.seeds)}
    resolved = resolve(specs)
    setup = next(iter(resolved.values())).setup
    tickets: dict[tuple[str, int], Ticket] = {}

    def keep(name: str) -> Callable[[int, Ticket], None]:
        return lambda level, ticket: tickets.update({(name, level): ticket})

    searches = {name: one.search(on_level=keep(name)) for name, one in resolved.items()}
    run_together(searches, setup, folder=options.folder, progress=tell)
    for (name, _), ticket in tickets.items():
        yield row_of(ticket.results, method="imp", control="ticket", seed=specs[name].seed)
    controls = {
        f"{kind}-{name}-{level}": (kind, name, level, control(ticket, kind, seed=specs[name].seed))
        for kind in CONTROLS
        for (name, level), ticket in tickets.items()
        if level
    }
    every = {
        key: trained(made, resolved[name], INIT, specs[name].seed)
        for key, (_, name, _, made) in controls.items()
    }
    for key, found in run_together(every, setup, folder=options.folder, progress=tell).items():
        kind, name, level, _ = controls[key]
        yield row_of(found.results, method="imp", control=kind, seed=specs[name].seed, level=level)


def methods(options: argparse.Namespace) -> Iterable[Row]:
    """Every method at every density, then the sanity checks of its tickets."""
    specs = {}
    for method in METHODS:
        more = {"score_epochs": options.score_epochs} if method in SCORED else {}
        for density in options.densities:
            for seed in range(options.seeds):
                spec = SearchSpec(method=method, density=density, steps=options.steps, seed=seed, **more)
                specs[f"{method}-{density:g}-{seed}"] = spec
                if method in ("snip", "grasp", "synflow", "magnitude"):
                    specs[f"{method}-{density:g}-{seed}-invert"] = spec.model_copy(update={"invert": True})
    found = find_tickets(specs, folder=options.folder, progress=tell)
    for name, ticket in found.items():
        kind = "invert" if specs[name].invert else "ticket"
        yield row_of(ticket.results, method=specs[name].method, control=kind, seed=specs[name].seed)
    resolved = resolve(specs)
    setup = next(iter(resolved.values())).setup
    every = {
        f"{kind}-{name}": trained(
            control(ticket, kind, seed=specs[name].seed), resolved[name], INIT, specs[name].seed
        )
        for kind in ("shuffle", "reinit")
        for name, ticket in found.items()
        if not specs[name].invert
    }
    for key, ticket in run_together(every, setup, folder=options.folder, progress=tell).items():
        kind, _, name = key.partition("-")
        yield row_of(ticket.results, method=specs[name].method, control=kind, seed=specs[name].seed)


def verdicts(options: argparse.Namespace) -> Iterable[Row]:
    """The verdict on methods at density .1."""
    for method in options.judged:
        spec = SearchSpec(method=method, density=0.1, steps=options.verdict_steps)
        judged = judge(
            spec,
            RATES,
            seeds=options.verdict_seeds,
            folder=options.folder / f"verdict-{method}",
            progress=tell,
        )
        for arm, by_rate in judged.rows.items():
            for lr, rows in by_rate.items():
                for seed, found in enumerate(rows):
                    yield row_of(found, method=method, control=arm, lr=lr, seed=seed)
        print("\n".join(judged.lines()))
        told = {"lines": judged.lines()} | judged.verdict.as_dict() | {"R_p": judged.correlation}
        (RESULTS / f"verdict-{method}.json").write_text(json.dumps(told, indent=1) + "\n")


def conv(options: argparse.Namespace) -> Iterable[Row]:
    """Conv-2, rewound to its init, far fewer iterations than the paper's 20,000."""
    base = SearchSpec(method="imp", net="conv-2", density=0.2, steps=options.conv_steps, prune_fraction=0.6)
    specs = {f"conv-2-{seed}": base.model_copy(update={"seed": seed}) for seed in range(options.seeds)}
    resolved = resolve(specs)
    setup = next(iter(resolved.values())).setup
    searches = {name: one.search() for name, one in resolved.items()}
    tickets = run_together(searches, setup, folder=options.folder, progress=tell)
    for name, ticket in tickets.items():
        for found in ticket.results["levels"]:
            yield row_of(found, method="imp", control="ticket", seed=specs[name].seed)
    every = {
        f"{kind}-{name}": trained(
            control(ticket, kind, seed=specs[name].seed), resolved[name], INIT, specs[name].seed
        )
        for kind in ("reinit", "shuffle")
        for name, ticket in tickets.items()
    }
    for key, ticket in run_together(every, setup, folder=options.folder, progress=tell).items():
        kind, _, name = key.partition("-")
        yield row_of(ticket.results, method="imp", control=kind, seed=specs[name].seed)


def eager_step(steps: int = 200) -> float:
    """Seconds a step of dense eager training of LeNet takes, the median of `steps`: what a step costs the
    published codes at any density."""
    one = resolve({"": SearchSpec(method="imp", density=0.5, steps=steps)})[""]
    ends: list[float] = []
    train(
        one.setup.build(), one.setup.data, one.recipe, on_step=lambda step: ends.append(time.perf_counter())
    )
    return statistics.median(end - start for start, end in itertools.pairwise(ends[10:]))


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


STAGES = {"levels": levels, "methods": methods, "verdict": verdicts, "conv": conv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--verdict-seeds", type=int, default=6)
    parser.add_argument("--verdict-steps", type=int, default=5_000)
    parser.add_argument("--conv-steps", type=int, default=600)
    parser.add_argument("--score-epochs", type=int, default=20)
    parser.add_argument("--densities", type=numbers, default=".2,.1,.05,.02,.01,.005", help="of methods")
    parser.add_argument(
        "--judged", type=lambda text: text.split(","), default="imp,synflow", help="by verdict"
    )
    parser.add_argument("--folder", type=Path, default=Path("tickets"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        before, start = dict(TRAINED), time.perf_counter()
        rows = list(STAGES[stage](options))
        seconds, steps = time.perf_counter() - start, TRAINED["steps"] - before["steps"]
        with open(RESULTS / f"{stage}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{stage}: {len(rows)} rows, at most {steps} steps in {seconds:.0f} s", flush=True)
    print(f"a step of dense eager training: {eager_step() * 1e3:.2f} ms on {options.threads} threads")


if __name__ == "__main__":
    main()
