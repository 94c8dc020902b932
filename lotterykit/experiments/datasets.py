"""The data sets of images that are at hand, a line each."""

from __future__ import annotations

from lotterykit.errors import ArgumentError


def listing() -> list[str]:
    """Lines "name, image, classes, where it lies"; for what is not found, the command that gets it."""
    from lotterykit.data.images import DATASETS, find

    lines = []
    for name, data_set in DATASETS.items():
        try:
            folder = find(name)
            place = str(folder) if folder is not None else "comes with scikit-learn (lotterykit[data])"
        except ArgumentError:
            place = f"not found; to get it: {data_set.command()}"
        image = " x ".join(map(str, data_set.shape))
        lines.append(f"{name:>13}  {image:>11}  {data_set.classes:>3} classes  {place}")
    return lines
