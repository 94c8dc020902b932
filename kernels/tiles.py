"""What the matrix kernels share: a program's tile, the mask's bits in it, configurations and launches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from lotterykit.kernels.configs import CONFIGS, Config
from torch import Tensor

NARROW = 32  # up to this many columns j
MOST_REGISTERS = 255  # said aloud, or ptxas spills a few to fit one more block on a multiprocessor


@triton.jit
def spread_bits(packed, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALONG_ROWS: tl.constexpr):
    """Bytes [ROWS / 8, COLUMNS] or [ROWS, COLUMNS / 8] to booleans [ROWS, COLUMNS]."""
    places = tl.arange(0, 8)
    if ALONG_ROWS:
        bits = (packed[:, None, :] >> places[None, :, None].to(tl.uint8)) & 1
    else:
        bits = (packed[:, :, None] >> places[None, None, :].to(tl.uint8)) & 1
    return tl.reshape(bits, (ROWS, COLUMNS)) != 0


@triton.jit
def tile_of(tile, tiles_i, tiles_j, GROUP: tl.constexpr):
    """(tile_i, tile_j) of tile number `tile`: GROUP rows of tiles at a time, so that neighbours share B."""
    first = (tile // (GROUP * tiles_j)) * GROUP
    height = tl.minimum(tiles_i - first, GROUP)
    return first + (tile % (GROUP * tiles_j)) % height, (tile % (GROUP * tiles_j)) // height


def product_kind(dtype: torch.dtype) -> str:
    """How operands of a dtype are multiplied: "half", "tf32" or "ieee", a key of `CONFIGS`."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32_allowed() else "ieee"


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of a dot of such operands."""
    return "tf32" if product_kind(dtype) == "tf32" else "ieee"


def config_for(kernel: str, how: str, bucket: str, device: torch.device) -> Config:
    """The pinned configuration, that of the device's capability where it has been tuned."""
    capability = 0
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    key = (kernel, how, bucket)
    return CONFIGS.get((*key, capability)) or CONFIGS[(*key, 0)]


def tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def needs_64_bits(tensor: Tensor, overhang: int = 256) -> bool:
    """Whether an offset into a tensor, `overhang` entries of each axis past its end, may pass 2^31."""
    return (
        sum(
            (size + overhang) * abs(stride)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        >= 2**31
    )


def any_wide(tensors: Iterable[Tensor], overhang: int = 256) -> bool:
    return any(needs_64_bits(tensor, overhang) for tensor in tensors)


def grouped(t: Tensor, axis: int, groups: int) -> Tensor:
    """`axis` as (groups, its size / groups)."""
    return t.unflatten(axis, (groups, t.shape[axis] // groups))


def is_smooth(view: Tensor) -> bool:
    """Whether channels or images, one of the first two axes, are contiguous and all other strides multiples
    of 16: then loads are of 16 bytes."""
    strides = [s for s, size in zip(view.stride(), view.shape, strict=True) if size > 1]
    return 1 in view.stride()[:2] and all(s == 1 or s % 16 == 0 for s in strides)


def refuse_silent_tf32(device: torch.device) -> None:
    """Triton 3.6 makes TF32 of a full-precision float32 product on sm_100; 3.9 does not."""
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if torch.cuda.get_device_capability(device)[0] >= 10 and version < (3, 9):
        raise RuntimeError(
            f"triton {triton.__version__} would silently use TF32 for float32 on this GPU: "
            "install triton >= 3.9 or allow TF32 (torch.set_float32_matmul_precision('high'))"
        )


def check_kernel(kernel: object, device: torch.device) -> bool:
    """Whether `kernel` is an interpreted one; raises `RuntimeError` where it cannot run on the device."""
    # triton read the variable when it was imported: a kernel is an interpreted one from then on
    interpreted = not isinstance(kernel, triton.JITFunction)
    if device.type == "cpu" and not interpreted:
        raise RuntimeError("TRITON_INTERPRET was set after triton was imported; set it before Python starts")
    return interpreted


def check_device(kernel: object, operand: Tensor) -> bool:
    """`check_kernel` of one that multiplies matrices."""
    interpreted = check_kernel(kernel, operand.device)
    if operand.is_cuda and operand.dtype == torch.float32 and not tf32_allowed():
        refuse_silent_tf32(operand.device)
    return interpreted


def launch(
    kernel: Any,
    grid: int | tuple[int, int],
    device: torch.device,
    values: dict[str, Any],
    warps: int,
    stages: int,
) -> None:
    """Start `kernel` on the current stream of `device`."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(grid,) if isinstance(grid, int) else grid](
            **values, num_warps=warps, num_stages=stages, maxnreg=MOST_REGISTERS
        )


def signed(word: int) -> int:
    """32 bits as a launch passes them whatever they are: an int32."""
    return (word + 2**31) % 2**32 - 2**31
