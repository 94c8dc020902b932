"""The ops: public functions, each with its reference, custom op and routes in a file of its own."""

from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.topk_mask import topk_mask

__all__ = ["masked_linear", "topk_mask"]
