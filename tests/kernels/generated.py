"""What the scripts of generated cases share: random tensors in every layout, launches between closed pages,
the bound, and what a script prints. They run in processes of their own, interpreted (interpreted.py).
"""

import json
import random
import sys
from pathlib import Path

import torch
from lotterykit.kernels import tiles

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from fenced import fenced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Draw:
    """Random sizes and tensors: either memory format, transposed, strided or contiguous."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def laid(self, x):
        """A copy that lies otherwise in memory."""
        kind = self.rng.choice(["contiguous", "contiguous", "last", "strided", "turned", "offset"])
        if kind == "last" and x.dim() == 4:
            return x.to(memory_format=torch.channels_last, copy=True)
        if kind == "strided":
            return torch.stack([x, x], -1)[..., 0]
        if kind == "turned" and x.dim() > 1:
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind == "offset" and x.dim() == 2:
            wide = x.new_zeros(2 * x.shape[0] + 1, x.shape[1] + 3)
            return wide[1::2, 1 : 1 + x.shape[1]].copy_(x)
        return x.clone(memory_format=torch.contiguous_format)

    def normal(self, *shape, dtype=torch.float32):
        return self.laid(torch.randn(shape, generator=self.generator).to(dtype))

    def mask(self, *shape):
        """All, none or some kept; of some masks a whole row or column is pruned."""
        mask = torch.rand(shape, generator=self.generator) < self.rng.choice([0.0, 0.05, 0.3, 0.7, 1.0])
        if mask.numel() and self.rng.random() < 0.3:
            mask.select(self.rng.randrange(mask.dim()), 0).fill_(False)
        return self.laid(mask)

    def lay_out_launches(self):
        """From now on kernels see copies of their tensors beside pages that nobody may touch, now and then
        count their offsets in 64 bits, and take their operands as TF32 products do."""
        real, wide = tiles.launch, tiles.any_wide

        def launch(kernel, grid, device, values, warps, stages):
            copies = {}
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    copies.setdefault(_identity(value), (value, fenced(value, self.rng)))
            inside = {
                name: copies[_identity(value)][1]
                for name, value in values.items()
                if isinstance(value, torch.Tensor)
            }
            real(kernel, grid, device, values | inside, warps, stages)
            for original, copy in copies.values():
                original.copy_(copy)

        tiles.launch = launch
        tiles.any_wide = lambda tensors, overhang=256: wide(tensors, overhang) or self.rng.random() < 0.2
        tiles.tf32_allowed = lambda: self.rng.random() < 0.2


def _identity(tensor):
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def excess(got, expected, magnitude, terms):
    """What is wrong, by the bound (terms + 1) * eps * sum |products|, plus the rounding of the output."""
    bound = (terms + 1) * torch.finfo(torch.float32).eps * magnitude
    if got.dtype != torch.float32:
        finfo = torch.finfo(got.dtype)
        bound = bound + finfo.eps * (expected.abs() + bound) + finfo.tiny
    if got.shape != expected.shape or not got.isfinite().all():
        return f"shape {tuple(got.shape)}, finite {bool(got.isfinite().all())}"
    over = (got.double() - expected).abs() - bound
    return f"{float(over.max()):g} over the bound" if over.numel() and over.max() > 0 else None


def main(ops):
    """ops: name -> function of (number of the case, `Draw`) that gives the case's failures. Prints one JSON
    line: op -> {"cases": n, "failures": [text, ...]}. Arguments of the script: number of cases, seed."""
    cases, seed = int(sys.argv[1]), int(sys.argv[2])
    draw = Draw(seed)
    draw.lay_out_launches()
    found = {}
    for op, run in ops.items():
        failures = [failure for case in range(cases) for failure in run(case, draw)]
        found[op] = {"cases": cases, "failures": failures}
    print(json.dumps(found))
