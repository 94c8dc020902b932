"""The ops: public functions, each with its reference, custom op and routes in a file of its own."""

from lotterykit.ops.csr import CSR
from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.match_neurons import match_neurons
from lotterykit.ops.sddmm import sddmm
from lotterykit.ops.sparse_conv2d import sparse_conv2d
from lotterykit.ops.spmm import spmm
from lotterykit.ops.synflow_masks import synflow_masks
from lotterykit.ops.synflow_scores import synflow_scores
from lotterykit.ops.topk_mask import topk_mask

__all__ = [
    "CSR",
    "masked_linear",
    "match_neurons",
    "sddmm",
    "sparse_conv2d",
    "spmm",
    "synflow_masks",
    "synflow_scores",
    "topk_mask",
]
