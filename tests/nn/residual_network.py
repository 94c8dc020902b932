"""A small network as timm builds them, masked in either format, and its training by a group of two processes.

python residual_network.py FILE OUT
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from lotterykit.nn.convert import convert_

FORMATS = ("masked", "sparse")


class Block(nn.Module):
    """An inverted residual: 1x1, depthwise 3x3, squeeze and excite, 1x1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, stride, padding=1, groups=2 * width)
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.short = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.depthwise(nn.functional.silu(self.norm(self.expand(x))))
        h = h * self.gate(h.mean((2, 3), keepdim=True)).sigmoid()
        return self.short(x) + self.project(h)


class Net(nn.Module):
    """A stem with a padding of its own, `blocks` residual blocks, a linear head."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")
        self.blocks = nn.Sequential(*(Block(4, 1 + i % 2) for i in range(blocks)))
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def network(format: str, blocks: int = 2) -> Net:
    """The same network for both formats, half of its weights kept, in evaluation mode."""
    torch.manual_seed(1)
    model = Net(blocks)
    masks = {n: torch.rand_like(p) < 0.5 for n, p in model.named_parameters() if p.dim() > 1}
    return convert_(model, masks=masks, format=format).eval()


def train(model: nn.Module, data: torch.Tensor) -> None:
    """Two steps on `data`."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def samples() -> torch.Tensor:
    return torch.randn(4, 3, 7, 6, generator=torch.Generator().manual_seed(2))


def train_in_a_group(rank: int, file: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    states = {}
    for format in FORMATS:
        model = network(format)
        train(nn.parallel.DistributedDataParallel(model), samples()[2 * rank : 2 * rank + 2])
        states[format] = model.state_dict()
    if rank == 1:
        torch.save(states, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo  # DDP loads it: once here, not in either process

    torch.multiprocessing.start_processes(train_in_a_group, sys.argv[1:], nprocs=2, start_method="fork")
