"""`GridFlags`: the grid of a sweep as command-line flags. Light, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GridFlags:
    """The grid. Every flag takes one value or several, separated by commas."""

    task: str | None = None
    """circle, relu, helix."""
    method: str | None = None
    """random, magnitude, snip, grasp, synflow, prospr, edge-popup, ...: lotterykit list methods."""
    density: str | None = None
    """Kept / total, in (0, 1], or truth: the planted ticket's."""
    pipeline: str | None = None
    """single-shot, multi-shot, edge-popup."""
    depth: str | None = None
    """Layers of neurons, the inputs counted; at least 3."""
    width: str | None = None
    """Neurons of each hidden layer."""
    gain: str | None = None
    """Share of the ticket's scale that its weights carry, in [0, 1]."""
    noise: str | None = None
    """Share of moved labels (circle), else standard deviation."""
    scope: str | None = None
    """global, local."""
    rounds: str | None = None
    """Scoring rounds within one shot."""
    invert: str | None = None
    """true: keep the lowest scores."""
    matching: str | None = None
    """best, random."""
    scaling: str | None = None
    """paper, norm."""
    init: str | None = None
    """he_scaled, he_uniform_scaled, glorot_normal, kaiming_normal, signed_constant."""
    samples: str | None = None
    """Samples drawn, the held-out tenth among them."""
    epochs: str | None = None
    """Epochs of the final training."""
    batch_size: str | None = None
    lr: str | None = None
    """Learning rate of Adam."""
    shots: str | None = None
    """Rounds of train, prune, reset (multi-shot)."""
    shot_epochs: str | None = None
    """Epochs of each such round (multi-shot)."""
    reset: str | None = None
    """init, never, not-last (multi-shot)."""
    score_epochs: str | None = None
    """Epochs of score training (edge-popup)."""
    score_lr: str | None = None
    """Learning rate of the scores (edge-popup)."""
    planted: str | None = None
    """false: mothers as they are, with the same data and seeds."""
    scaled_init: str | None = None
    """true: a mother's weights are divided by the square root of the density."""
    seeds: str | None = None
    """How many seeds, or which: 3 is 0,1,2, and 3, is the seed 3 alone."""

    def fields(self) -> tuple[dict[str, list[Any]], int | list[int] | None]:
        """The given flags as lists of values, and the seeds (a count or a list, None where not given)."""
        lists = {name: values(text) for name, text in asdict(self).items() if text is not None}
        seeds = lists.pop("seeds", None)
        count = seeds is not None and len(seeds) == 1 and "," not in (self.seeds or "")
        return lists, seeds[0] if seeds is not None and count else seeds


def values(text: str) -> list[Any]:
    """The values of a flag: numbers, true and false where they look like them, else words; nothing between
    two commas is no value.

    >>> values(".1, truth,1,true")
    [0.1, 'truth', 1, True]
    """
    words = {"true": True, "false": False}
    found: list[Any] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        for kind in (int, float):
            try:
                found.append(kind(part))
                break
            except ValueError:
                continue
        else:
            found.append(words.get(part.lower(), part))
    return found


def figure_names(figures: list[str] | None) -> list[int | str]:
    """The numbers and names of `--figure 3 ladder` and `--figure 3,ladder`, each once."""
    texts = [text.strip() for word in figures or () for text in word.split(",")]
    return list(dict.fromkeys(int(text) if text.isdecimal() else text for text in texts if text))
