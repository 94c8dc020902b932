"""The ops: public functions, each with its reference, custom op and routes in a file of its own."""

from lotterykit.ops.csr import CSR
from lotterykit.ops.gem_miner_step import gem_miner_step_
from lotterykit.ops.guess import Guess
from lotterykit.ops.masked_conv2d import masked_conv1d, masked_conv2d
from lotterykit.ops.masked_copies import masked_copies
from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.match_neurons import match_neurons
from lotterykit.ops.sddmm import sddmm
from lotterykit.ops.sparse_conv2d import batch_last, sparse_conv2d
from lotterykit.ops.spmm import spmm
from lotterykit.ops.synflow_masks import synflow_masks
from lotterykit.ops.synflow_scores import synflow_scores
from lotterykit.ops.threshold import fixed_threshold, score_thresholds
from lotterykit.ops.threshold_conv2d import threshold_conv2d
from lotterykit.ops.threshold_linear import threshold_linear
from lotterykit.ops.topk_mask import topk_mask

__all__ = [
    "CSR",
    "Guess",
    "batch_last",
    "fixed_threshold",
    "gem_miner_step_",
    "masked_conv1d",
    "masked_conv2d",
    "masked_copies",
    "masked_linear",
    "match_neurons",
    "score_thresholds",
    "sddmm",
    "sparse_conv2d",
    "spmm",
    "synflow_masks",
    "synflow_scores",
    "threshold_conv2d",
    "threshold_linear",
    "topk_mask",
]
