"""`kept`: a weight with its pruned entries 0 whatever they hold, at the speed of a multiplication on the CPU.

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


class _Known(NamedTuple):
    """A state of a CPU mask whose calls the reference serves; `numbers` is None where it keeps every weight."""

    mask: weakref.ref[Tensor]
    version: int
    address: int
    dtype: torch.dtype
    numbers: Tensor | None


# By id, and not by a WeakTensorKeyDictionary, whose look-up costs as much as a small product.
_known: dict[int, _Known] = {}


def kept(op: str, weight: Tensor, mask: Tensor) -> Tensor | None:
    """`torch.where(mask, weight, 0)`, bit for bit, or None where it is not for this function to compute it.

    It computes where no transform, tracer or compiler looks on, for a CPU mask that `dispatch` leaves to the
    reference without being forced to. Holds the mask in the weight's dtype for as long as the mask lives;
    changes are seen as by `bit_mask`.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or dispatch.forced_backend(op) is not None
    ):
        return None
    known = _known.get(id(mask))
    if (
        known is None
        or known.mask() is not mask
        or known.version != mask._version
        or known.address != mask.data_ptr()
        or known.dtype is not weight.dtype
    ):
        known = _look(op, mask, weight.dtype)
        if known is None:
            return None
    return weight if known.numbers is None else _select(weight, known.numbers, 0)


def _look(op: str, mask: Tensor, dtype: torch.dtype) -> _Known | None:
    """Remember a mask, if there is something to remember."""
    if not mask.is_cpu or mask.is_inference() or (density := known_density(mask)) is None:
        return None
    if dispatch.select(dispatch.Call(op, "cpu", dtype, density)).backend != "reference":
        return None
    with torch.inference_mode(False):  # else autograd could not save it
        # By way of bytes: torch converts bools one at a time.
        numbers = None if density == 1 else mask.detach().view(torch.uint8).to(dtype)
    key = id(mask)
    gone = functools.partial(_forget, key)
    known = _Known(weakref.ref(mask, gone), mask._version, mask.data_ptr(), dtype, numbers)
    _known[key] = known
    return known


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    known = _known.get(key)
    if known is not None and known.mask is reference:  # the id may be another's by now
        del _known[key]
