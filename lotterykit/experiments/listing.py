"""What `lotterykit list` prints of networks, recipes and controls."""

from __future__ import annotations

from lotterykit.experiments.recipes import RECIPES
from lotterykit.nn.models import NETWORKS, outline, weight_counts


def recipe_lines() -> list[str]:
    """A line a recipe: name, network, task, optimizer, duration and batch."""
    lines = []
    for name, recipe in RECIPES.items():
        lasts = f"{recipe.epochs} epochs" if recipe.iterations is None else f"{recipe.iterations} iterations"
        how = f"{recipe.optimizer} {recipe.lr:g}, {lasts}, batch {recipe.batch_size}"
        lines.append(f"{name:<28} {recipe.network:<17} {recipe.task:<14} {how}")
    return lines


def control_lines() -> list[str]:
    """A line a control: name and the paper that uses it."""
    from lotterykit.experiments.check import INVERT, SMART_RATIO
    from lotterykit.experiments.controls import CONTROLS

    sources = {name: row.source for name, row in CONTROLS.items() if row.option != "densities"}
    sources |= {SMART_RATIO: CONTROLS["allocation"].source, INVERT: "Rare Gems, sec. 4: the search again"}
    return [f"{name:<20} {source}" for name, source in sources.items()]


def network_lines() -> list[str]:
    """A line a network: name, parameters and prunable weights, for its paper's images and 10 classes."""
    lines = []
    for name, form in NETWORKS.items():
        parameters, prunable = weight_counts(outline(name))
        size = "x".join(map(str, form.input))
        lines.append(f"{name:<17} {parameters:>11,} parameters {prunable:>11,} prunable  {size}, 10 classes")
    return lines
