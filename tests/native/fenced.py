"""Tensors that end, or begin, at a page that nobody may touch: a read past them is a signal, also where the
compiler's sanitizers see none (masked loads, gathers, assembler)."""

from __future__ import annotations

import ctypes
import mmap
import random

import torch
from torch import Tensor

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def fenced(x: Tensor, rng: random.Random) -> Tensor:
    """A copy of a tensor, its strides kept, whose last, or first, entry in memory stands next to a closed
    page; aligned as its dtype demands and no further. Empty ones come back as they are."""
    if x.numel() == 0:
        return x
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    size = span * x.element_size()
    page = mmap.PAGESIZE
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (first, first + page + inside):
        if _protect(fence, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    begin = page + (inside - size if rng.random() < 0.7 else 0)
    copy = torch.frombuffer(memory, dtype=x.dtype, count=span, offset=begin)
    return copy.copy_(x.detach().as_strided((span,), (1,))).as_strided(x.shape, x.stride())
