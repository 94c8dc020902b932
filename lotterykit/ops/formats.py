"""Formats of a mask: `BitMask`, the packed bits and the exact count of a bool mask, cached per tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_PLAIN = (Tensor, torch.nn.Parameter)


class BitMask:
    """Bits and count of one state of a bool mask `[out, in, *kernel]` (any shape for the count); made by
    `bit_mask`.

    `bits`: uint8 `[out, *kernel, ceil(in / 8)]` on the mask's device, contiguous. Weight (o, i) is bit i % 8
    (the lowest is 0) of byte i // 8 of row o; the spare bits of a row's last byte are 0. `count`: kept
    weights. Both are computed on first use. The count of a device mask costs one synchronisation, once.
    """

    def __init__(self, mask: Tensor) -> None:
        # The same storage as another object: the cache holds this, and must not keep its own key alive.
        self._mask = mask.detach()
        self._bits: Tensor | None = None
        self._flat: dict[bool, Tensor] = {}
        self._count: int | None = None

    @property
    def bits(self) -> Tensor:
        if self._bits is not None:
            return self._bits
        bits = pack_bits(self._mask)
        if not _capturing(self._mask):
            self._bits = bits
        return bits

    def flat_bits(self, channels_last: bool = False) -> Tensor:
        """Uint8 `[ceil(entries / 8)]`: the mask flat, as a contiguous or a channels-last weight lies in
        memory; entry e is bit e % 8 of byte e // 8."""
        if channels_last in self._flat:
            return self._flat[channels_last]
        mask = self._mask.permute(0, 2, 3, 1) if channels_last else self._mask
        bits = pack_bits(mask.reshape(1, -1)).view(-1)
        if not _capturing(self._mask):
            self._flat[channels_last] = bits
        return bits

    @property
    def count(self) -> int:
        if self._count is None:
            self._count = int(torch.count_nonzero(self._mask))
        return self._count

    @property
    def counted(self) -> bool:
        """Whether `count` is known already, so that reading it costs nothing."""
        return self._count is not None

    @property
    def density(self) -> float:
        """Kept / total; 1 for an empty mask."""
        return self.count / self._mask.numel() if self._mask.numel() else 1.0


_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # mask -> ((version, address), BitMask)


def bit_mask(mask: Tensor) -> BitMask:
    """The `BitMask` of a bool tensor, from the cache while `mask` is unchanged.

    A change in place is seen by the tensor's version counter; writes that hide from it (through `.data`
    or a numpy view) are not. Tensors made in inference mode have no counter and are never cached. A CUDA
    graph reads the bits that were there at its capture, or packs the mask anew at every replay.
    """
    if mask.is_inference():
        return BitMask(mask)
    state = (mask._version, mask.data_ptr())
    entry = _cache.get(mask)
    if entry is None or entry[0] != state:
        entry = (state, BitMask(mask))
        if not _capturing(mask):
            _cache[mask] = entry
    return entry[1]


def _capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured: what it computes is there at its replay, not before, so nobody
    else may be given it."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def known_density(mask: Tensor) -> float | None:
    """Kept / total of `mask`, or None where its contents cannot be read now.

    That is so for fake, meta and `torch.func` tensors, and for a count still missing while a CUDA graph
    is being captured.
    """
    if type(mask) not in _PLAIN or mask.device.type == "meta":
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(mask):
        return None
    bits = bit_mask(mask)
    if not bits.counted and _capturing(mask):
        return None
    return bits.density


def pack_bits(mask: Tensor) -> Tensor:
    """Bool `[out, in, *kernel]` to uint8 `[out, *kernel, ceil(in / 8)]`, the lowest bit first.

    >>> pack_bits(torch.tensor([[True, False, True, False, False, False, False, False, True]])).tolist()
    [[5, 1]]
    """
    columns = mask.shape[1]
    width = -(-columns // 8)
    rows = (mask.shape[0], *mask.shape[2:])
    padded = torch.zeros(*rows, width * 8, dtype=torch.uint8, device=mask.device)
    padded[..., :columns] = mask.movedim(1, -1)
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.view(*rows, width, 8) << places).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_bits`: uint8 `[out, ceil(columns / 8)]` to bool `[out, columns]`."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> places) & 1).bool().flatten(1)[:, :columns]
