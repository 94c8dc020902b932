"""`Kept`: a weight with its pruned entries 0 whatever they hold, at the speed of a multiplication on the CPU.

`torch.where` decides there weight by weight, at nine times the cost of `weight * mask`. The one select of
torch's that is vectorised and differentiable is `threshold_backward(weight, m, 0)`, the weight where m > 0,
else 0; it wants the mask as numbers, which are made once per state of a mask.
"""

from __future__ import annotations

import functools
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from lotterykit.ops import dispatch
from lotterykit.ops.formats import known_density

_select = torch.ops.aten.threshold_backward.default


class Kept(NamedTuple):
    """A state of a CPU mask; `numbers`, the mask in a weight's dtype, is None where it keeps every weight.

    Calling it is `torch.where(mask, weight, 0)`, bit for bit, its gradients too; the weight must be a CPU
    tensor of that `shape` and `dtype`.
    """

    mask: weakref.ref[Tensor]
    version: int
    address: int
    shape: torch.Size
    dtype: torch.dtype
    numbers: Tensor | None

    def __call__(self, weight: Tensor) -> Tensor:
        return weight if self.numbers is None else _select(weight, self.numbers, 0)


# By id, and not by a WeakTensorKeyDictionary, whose look-up costs as much as a small product.
_known: dict[tuple[str, int], Kept] = {}


def kept_by(op: str, mask: Tensor, dtype: torch.dtype) -> Kept | None:
    """How `op` is to mask weights of `dtype`, or None where it must go the way through the dispatcher.

    That is so for all but CPU masks which `dispatch` leaves to the reference without being forced to, and
    where a mode or a tracer looks on, for which a mask must not become a constant. The numbers live as long
    as the mask; changes of it are seen as by `bit_mask`.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return None
    if dispatch.forced_backend(op) is not None:
        return None
    known = _known.get((op, id(mask)))
    if (
        known is not None
        and known.mask() is mask
        and known.version == mask._version
        and known.address == mask.data_ptr()
        and known.dtype is dtype
    ):
        return known
    return _look(op, mask, dtype)


def _look(op: str, mask: Tensor, dtype: torch.dtype) -> Kept | None:
    """Remember a mask, if it is one to remember."""
    if not mask.is_cpu or mask.dtype != torch.bool or mask.is_inference():
        return None
    if not dtype.is_floating_point or (density := known_density(mask)) is None:
        return None
    if dispatch.select(dispatch.Call(op, "cpu", dtype, density)).backend != "reference":
        return None
    with torch.inference_mode(False):  # else autograd could not save it
        # By way of bytes: torch converts bools one at a time.
        numbers = None if density == 1 else mask.detach().view(torch.uint8).to(dtype)
    key = op, id(mask)
    reference = weakref.ref(mask, functools.partial(_forget, key))
    known = Kept(reference, mask._version, mask.data_ptr(), mask.shape, dtype, numbers)
    _known[key] = known
    return known


def _forget(key: tuple[str, int], reference: weakref.ref[Tensor]) -> None:
    known = _known.get(key)
    if known is not None and known.mask is reference:  # the id may be another's by now
        del _known[key]
