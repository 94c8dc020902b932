"""Evaluation mode for a while: `evaluating`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode; afterwards each of its modules is back in the mode it had.

    >>> with evaluating(nn.Sequential(nn.Dropout(0.5)).train()) as model:
    ...     model[0].training
    False
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
