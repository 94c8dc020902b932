"""Plant a known ticket into a random network, and measure whether a mask found it again."""

from lotterykit.planting.approximator import Univariate, univariate
from lotterykit.planting.bound import existence_bound, homogeneous_bound, parameter_errors, target_bound
from lotterykit.planting.hiding import Hiding
from lotterykit.planting.match import MATCHINGS, SCALINGS
from lotterykit.planting.plant import Planted, plant
from lotterykit.planting.recovery import Overlap, Recovery, recovery
from lotterykit.planting.targets import TARGETS, TargetNetwork

__all__ = [
    "MATCHINGS",
    "SCALINGS",
    "TARGETS",
    "Hiding",
    "Overlap",
    "Planted",
    "Recovery",
    "TargetNetwork",
    "Univariate",
    "existence_bound",
    "homogeneous_bound",
    "parameter_errors",
    "plant",
    "recovery",
    "target_bound",
    "univariate",
]
