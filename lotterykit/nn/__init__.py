"""Layers, networks and their initialisations."""

from lotterykit.nn.convert import convert_, revert_
from lotterykit.nn.init import INITS
from lotterykit.nn.masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from lotterykit.nn.models import NETWORKS, mlp, network
from lotterykit.nn.scored import ScoredConv1d, ScoredConv2d, ScoredLinear, ranked_together
from lotterykit.nn.sparse import SparseConv1d, SparseConv2d, SparseLinear
from lotterykit.nn.supermask import bake_, score_

__all__ = [
    "INITS",
    "NETWORKS",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedLinear",
    "ScoredConv1d",
    "ScoredConv2d",
    "ScoredLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "bake_",
    "convert_",
    "mlp",
    "network",
    "ranked_together",
    "revert_",
    "score_",
]
