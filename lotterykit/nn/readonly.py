"""Tensors that refuse to be written to: what `layer.weight` of a sparse layer hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError

HARMLESS = ("requires_grad_",)  # ends like a write, changes no number


class ReadOnly(Tensor):
    """A tensor built on demand: a write to it, or to a view of it, would be lost, and raises.

    Results of other operations are plain tensors; `.clone()` gives one to write to.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written = args[:1] if _writes(name) else ()
        if any(isinstance(t, cls) for t in (*written, kwargs.get("out"))):
            raise ArgumentError(
                f"{name}: weight and weight_mask of a sparse layer are built when read, writes are lost: "
                "write to layer.values, assign layer.weight_mask, or convert_(model, format='masked') first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            own = {t.untyped_storage().data_ptr() for t in args if isinstance(t, cls)} - {0}
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() in own:
                return result.as_subclass(cls)
            return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.detach().clone()


def read_only(tensor: Tensor) -> Tensor:
    """The same tensor, read-only; as it is where torch traces or transforms, and sees no subclasses."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return tensor if traced else tensor.as_subclass(ReadOnly)


def _writes(name: str) -> bool:
    """Whether a function of this name writes to its first argument."""
    if name in HARMLESS:
        return False
    inplace = name.endswith("_") and not name.endswith("__")
    return inplace or name in ("__setitem__", "__set__", "__ior__", "__iand__", "__ixor__")
