"""`lotterykit plant-back`: a trained ticket planted back into its network, and what edge-popup finds of it.

Light: torch is loaded when the command runs.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lotterykit.errors import ArgumentError


@dataclass(frozen=True)
class PlantBackFlags:
    """The experiment. What is not given is the paper's, as far as it says."""

    net: str | None = None
    """A chain without batch-norm: vgg-16 (default), vgg-19, conv-2, conv-4, conv-6, lenet."""
    data: str | None = None
    """Data set: lotterykit list data. cifar10 by default."""
    seed: int | None = None
    density: float | None = None
    """Of the ticket, .01 by default."""
    recipe: str | None = None
    """How the ticket trains: lotterykit list recipes."""
    steps: int | None = None
    """Of the ticket's last training."""
    shots: int | None = None
    """Of SynFlow, 10 by default."""
    shot_epochs: int | None = None
    gain: float | None = None
    """Share of the ticket's scale that the planted weights carry, in [0, 1]; 1 by default."""
    matching: str | None = None
    """best, random."""
    scaling: str | None = None
    """paper, norm."""
    levels: int | None = None
    """Of edge-popup, 10 by default."""
    level_epochs: int | None = None
    warmup_epochs: int | None = None
    score_lr: float | None = None
    scope: str | None = None
    """layer (default), global."""
    unplanted: bool | None = None
    """Also in the mother as it was; the default."""


def plant_back(
    *,
    flags: Annotated[PlantBackFlags | None, Parameter(name="*")] = None,
    densities: str = ".01",
    folder: Path = Path("plant-back"),
    device: str = "cpu",
) -> int:
    """Plant 'n' Seek, Fig. 5: train a SynFlow ticket, plant it back, let edge-popup look for it.

    Parameters
    ----------
    densities
        That edge-popup anneals to, separated by commas.
    folder
        For the tickets (ticket, truth, found-<density>), levels.csv, and the journal from which the same
        command goes on.
    device
        Where networks train: cpu, cuda or cuda:1.
    """
    from lotterykit.experiments.export import whole_text
    from lotterykit.experiments.plant_back import PlantBack
    from lotterykit.experiments.plant_back import plant_back as run
    from lotterykit.experiments.search_display import progress

    try:
        targets = tuple(float(part) for part in densities.split(","))
    except ValueError:
        raise ArgumentError(f"densities must be numbers separated by commas, got {densities!r}") from None
    given: dict[str, Any] = {k: v for k, v in asdict(flags or PlantBackFlags()).items() if v is not None}
    settings = PlantBack(densities=targets, **given)
    with progress() as tell:
        result = run(settings, folder=folder / "journal", device=device, progress=tell)
    tickets = {"ticket": result.ticket, "truth": result.truth}
    tickets |= {f"found-{density:g}": ticket for density, ticket in result.found.items()}
    for name, ticket in tickets.items():
        ticket.save(folder / f"{name}.safetensors")
    rows = list(result.rows())
    with whole_text(folder / "levels.csv") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(result.lines()))
    print(f"tickets: {folder}")
    return 0
