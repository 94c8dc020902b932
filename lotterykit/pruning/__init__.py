"""Pruning: scores, schedules and exact counts."""

from lotterykit.pruning.flow import live_weights
from lotterykit.pruning.prune import Pruner, Round, prune_
from lotterykit.pruning.schedules import SCHEDULES, after_levels, density_after
from lotterykit.pruning.scores import SCORES, scores

__all__ = [
    "SCHEDULES",
    "SCORES",
    "Pruner",
    "Round",
    "after_levels",
    "density_after",
    "live_weights",
    "prune_",
    "scores",
]
