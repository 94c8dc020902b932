"""Any map-style torch Dataset as tensors."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lotterykit.errors import ArgumentError


def tensors(dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """All of a map-style dataset of pairs: x `[N, ...]`, y `[N]` (int64 of class numbers) or `[N, ...]`.

    Inputs may be tensors, arrays or PIL images (`[H, W]` or `[H, W, C]` of uint8, which become `[C, H, W]`);
    targets class numbers, tensors or arrays. Raises `ArgumentError` for datasets without length or index and
    empty ones, and for an example that is no pair or differs from the first in shape or dtype, by its index.

    >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    >>> [list(t.shape) for t in tensors(pairs)]
    [[5, 2], [5]]
    """
    indexed = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    if not indexed or isinstance(dataset, IterableDataset):
        raise ArgumentError(f"a dataset needs __len__ and __getitem__, got {type(dataset).__name__}")
    count = len(cast(Sized, dataset))
    if count == 0:
        raise ArgumentError("the dataset is empty")
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(count):
        example = dataset[index]
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise ArgumentError(
                f"example {index} must be a pair (input, target), got {type(example).__name__}"
            )
        for what, value, half in zip(("input", "target"), example, halves, strict=True):
            tensor = _tensor(value, f"{what} {index}")
            if half and (tensor.shape, tensor.dtype) != (half[0].shape, half[0].dtype):
                raise ArgumentError(
                    f"{what} {index} is {tensor.dtype} {list(tensor.shape)}, "
                    f"the first is {half[0].dtype} {list(half[0].shape)}: all must agree"
                )
            half.append(tensor)
    return torch.stack(halves[0]), torch.stack(halves[1])


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    is_image = not isinstance(value, np.ndarray | np.generic) and hasattr(value, "__array_interface__")
    try:
        tensor = torch.as_tensor(np.array(value) if is_image else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{what} is a {type(value).__name__}, which makes no tensor: {error}") from None
    if is_image:
        tensor = tensor[..., None] if tensor.dim() == 2 else tensor
        tensor = tensor.permute(2, 0, 1)
    return tensor
