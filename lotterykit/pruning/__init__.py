"""Pruning: scores, allocations, schedules, levels and exact counts."""

from lotterykit.pruning.allocation import ALLOCATIONS, layer_densities
from lotterykit.pruning.flow import live_weights
from lotterykit.pruning.levels import level_masks
from lotterykit.pruning.prune import Pruner, Round, prune_
from lotterykit.pruning.schedules import SCHEDULES, after_levels, density_after
from lotterykit.pruning.scores import SCORES, scores

__all__ = [
    "ALLOCATIONS",
    "SCHEDULES",
    "SCORES",
    "Pruner",
    "Round",
    "after_levels",
    "density_after",
    "layer_densities",
    "level_masks",
    "live_weights",
    "prune_",
    "scores",
]
