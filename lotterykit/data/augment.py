"""Random flips and crops of batches of images (P4, The Lottery Ticket Hypothesis: VGG-19, ResNet-18)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, check_seed


def flip_and_crop(
    x: Tensor, seed: int, step: int = 0, *, padding: int = 4, fill: Tensor | float = 0.0
) -> Tensor:
    """Each image of `x [B, C, H, W]` flipped left to right with probability 1/2, then moved by up to
    `padding` pixels each way: a random crop of its own size from the image with a margin of `fill`.

    `fill`: a number, or one a channel `[C]` (`Images.black` makes the margin black). The draws depend on
    `seed`, `step` and B alone, not on the device. Returns a new tensor; raises `ArgumentError`.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"x must be images [B, C, H, W], got {got}")
    if type(padding) is not int or padding < 0 or type(step) is not int or step < 0:
        raise ArgumentError(f"padding and step must be ints of at least 0, got {padding!r} and {step!r}")
    batch, channels, height, width = x.shape
    if isinstance(fill, Tensor) and fill.shape not in ((), (channels,)):
        raise ArgumentError(f"fill must be a number or one a channel [{channels}], got {list(fill.shape)}")
    flips, tops, lefts = (draw.to(x.device) for draw in _draws(batch, padding, seed, step))
    padded = x.new_empty(batch, channels, height + 2 * padding, width + 2 * padding)
    margin = torch.as_tensor(fill).to(x)
    padded.copy_(margin.reshape(-1, 1, 1).expand(channels, 1, 1))
    padded[:, :, padding : padding + height, padding : padding + width] = x
    across = torch.arange(width, device=x.device)
    # a flip reads the same window backwards: flipped, it lies on the other side, as likely as this one
    columns = lefts[:, None] + torch.where(flips[:, None], across.flip(0), across)
    rows = tops[:, None] + torch.arange(height, device=x.device)
    images = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[images, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _draws(batch: int, padding: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flips (bool), top and left corners in 0..2 * padding, each `[batch]`."""
    text = f"flip and crop {check_seed(seed)} {step}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    flips = torch.rand(batch, generator=generator) < 0.5
    corners = torch.randint(2 * padding + 1, (2, batch), generator=generator)
    return flips, corners[0], corners[1]
