"""Which backend serves a call: `Call`, `Route`, `select`, `explain`, `use_backend`.

Dispatch is data. The rows stand in `routes.py`, are tried in order, and `Route.refusal` gives the one
reason that `select`, `explain` and the error text share. There is no silent fallback: a forced backend
that cannot serve a call raises with the reasons.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lotterykit.errors import ArgumentError, BackendError, unknown_name

log = logging.getLogger(__name__)

BUILD_REPORT = Path(__file__).parents[1] / "_build_report.json"
BACKENDS = ("reference", "cpu", "triton", "cuda")
_forced: dict[str, str] = {}  # op name, or "*" for every op -> backend


@dataclass(frozen=True)
class Call:
    """What dispatch may know of a call; built by an op's `call_of` without touching tensor contents.

    `density` is kept / total from a format's cached count, or None where the op has no mask.
    """

    op: str
    device: str
    dtype: torch.dtype
    density: float | None = None


@dataclass(frozen=True)
class Route:
    """One row of `ROUTES`: `kernel` ("module:function", loaded on first use) serves `op` where it matches.

    `dtypes` empty means any; `density` is the closed band served; `tf32` says that float32
    is served only where torch allows TF32 products; `evidence` names the benchmark file
    behind the row, or says why it needs none. None: not yet measured, so served only when forced.
    """

    op: str
    backend: str
    device: str
    kernel: str
    evidence: str | None
    dtypes: tuple[torch.dtype, ...] = ()
    density: tuple[float, float] = (0.0, 1.0)
    tf32: bool = False

    def refusal(self, call: Call, *, forced: bool = False) -> str | None:
        """Why this route does not serve `call`, or None where it does. Forcing lifts all
        that measurements decide: the density band, TF32, a row without any."""
        interpreted = self.backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if self.device not in ("any", call.device) and not (interpreted and call.device == "cpu"):
            return f"needs {self.device} tensors, got {call.device}"
        if self.dtypes and call.dtype not in self.dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            return f"needs dtype {allowed}, got {str(call.dtype).removeprefix('torch.')}"
        if (reason := missing(self.backend)) is not None:
            return reason
        if self.evidence is None and not forced:
            return f"not yet measured, so it must be asked for: use_backend({self.backend!r})"
        if self.tf32 and not forced and call.dtype == torch.float32 and not tf32_allowed():
            return "serves float32 where TF32 is allowed (torch.set_float32_matmul_precision) or forced"
        low, high = self.density
        if not forced and call.density is not None and not low <= call.density <= high:
            return f"serves density {low:g} to {high:g}, got {call.density:.3g}"
        return None


def tf32_allowed() -> bool:
    """Whether torch may compute float32 matrix products on CUDA in TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@functools.cache
def missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, in one line, or None where it can."""
    reason = _missing(backend)
    if reason is not None:
        log.info("backend %s: %s", backend, reason)
    return reason


def _missing(backend: str) -> str | None:
    if backend == "reference":
        return None
    if backend == "cpu":
        return _module_missing("cpu", "lotterykit._cpu")
    if backend == "cuda":
        reason = _module_missing("cuda", "lotterykit._cuda")
        if reason is None and not torch.cuda.is_available():
            reason = "torch sees no CUDA device"
        return reason or _unserved_device(importlib.import_module("lotterykit._cuda").CODE)
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return None
    return "torch sees no CUDA device (TRITON_INTERPRET=1 runs Triton kernels on the CPU, slowly)"


def _module_missing(backend: str, name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not built: {_build_reason(backend)}"
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"{name} does not load: {error}"
    return None


def _unserved_device(code: Iterable[str]) -> str | None:
    """Why lotterykit._cuda, which holds `code`, does not run on every device that torch sees, or None."""
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not any(runs_on(one, capability) for one in code):
            return (
                f"lotterykit._cuda holds {', '.join(code)}, none of which runs on cuda:{index} "
                f"(sm_{capability[0]}{capability[1]}; CUDA_VISIBLE_DEVICES hides a device)"
            )
    return None


def runs_on(code: str, capability: tuple[int, int]) -> bool:
    """Whether code of nvcc's runs on a device: "sm_80" on 8.x, "sm_90a" on 9.0 alone, "compute_100" (PTX) on
    10.0 and all that is newer (CUDA C++ Programming Guide, compute capabilities).

    >>> runs_on("sm_80", (8, 9)), runs_on("sm_90a", (10, 0)), runs_on("compute_90", (12, 0))
    (True, False, True)
    """
    kind, _, number = code.partition("_")
    at = int(number.rstrip("a")[:-1]), int(number.rstrip("a")[-1])
    if number.endswith("a"):
        return capability == at
    return capability >= at and (kind == "compute" or capability[0] == at[0])


def _build_reason(backend: str) -> str:
    """Why setup.py left a native module out, by the report that it wrote beside the package."""
    try:
        report = json.loads(BUILD_REPORT.read_text())
        return str(report[backend]["reason"] or "it was built, but for another Python")
    except (OSError, ValueError, KeyError, TypeError):
        return "lotterykit was not installed by its setup.py"


def backends() -> dict[str, str | None]:
    """Every backend by name with the reason why it cannot run here, or None where it can."""
    return {name: missing(name) for name in BACKENDS}


@contextlib.contextmanager
def use_backend(name: str, ops: Iterable[str] | None = None) -> Iterator[None]:
    """Force a backend ("auto" lifts a force) for all ops, or for those named, process-wide while it is open.

    Calls that the backend cannot serve raise `BackendError` with the reasons.

    >>> with use_backend("reference", ops=["topk_mask"]):
    ...     pass
    """
    _check_backend(name)
    keys = ["*"] if ops is None else [_check_op(op) for op in ops]
    before = dict(_forced)
    if ops is None:
        _forced.clear()
    for key in keys:
        _forced[key] = name
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def forced_backend(op: str) -> str | None:
    """The backend forced for `op` by `use_backend` or `LOTTERYKIT_BACKEND`, or None."""
    name = _forced.get(op) or _forced.get("*") or os.environ.get("LOTTERYKIT_BACKEND")
    if not name or name == "auto":
        return None
    _check_backend(name)
    return name


def select(call: Call) -> Route:
    """The first route that serves `call`; raises `BackendError` with a reason per route where none does."""
    forced = forced_backend(call.op)
    considered = []
    for route, reason in _considered(call, forced):
        if reason is None:
            return route
        considered.append((route, reason))
    lines = [f"  {route.backend}: {reason}" for route, reason in considered]
    wanted = f"backend {forced!r} was forced but" if forced else "no backend"
    raise BackendError(f"{call.op}: {wanted} cannot serve {_words(call)}\n" + "\n".join(lines))


def load(route: Route) -> Callable[..., object]:
    """The function behind `route.kernel`."""
    return _load(route.kernel)


@functools.cache
def _load(kernel: str) -> Callable[..., object]:
    module, function = kernel.split(":")
    return getattr(importlib.import_module(module), function)


def explain(op: str, *args: object, **kwargs: object) -> str:
    """Which backend `lk.ops.<op>(*args, **kwargs)` would take, and why each row before it was passed over; of
    the products of layers also which format `format="auto"` gives such a layer."""
    from lotterykit.ops.crossovers import told
    from lotterykit.ops.routes import OWNERS

    _check_op(op)
    owner = OWNERS.get(op, f"lotterykit.ops.{op}")
    call = importlib.import_module(owner).call_of(*args, **kwargs)
    forced = forced_backend(op)
    lines = [f"{op} {_words(call)}" + (f", backend {forced!r} forced" if forced else "")]
    chosen = False
    for route, reason in _considered(call, forced):
        if reason is None and not chosen:
            chosen = True
            lines.append(f"  {route.backend}: chosen ({route.evidence or 'forced; not yet measured'})")
        elif not chosen:
            lines.append(f"  {route.backend}: {reason}")
        else:
            lines.append(f"  {route.backend}: {'stands after the chosen row' if reason is None else reason}")
    if not chosen:
        lines.append("  no backend can serve this call")
    if (formats := told(op, call.device, call.dtype)) is not None:
        lines.append(f"  layers of format='auto': {formats}")
    return "\n".join(lines)


def _considered(call: Call, forced: str | None) -> Iterator[tuple[Route, str | None]]:
    from lotterykit.ops.routes import ROUTES

    for route in ROUTES:
        if route.op == call.op:
            other = forced is not None and route.backend != forced
            yield route, f"{forced!r} is forced" if other else route.refusal(call, forced=forced is not None)


def _words(call: Call) -> str:
    density = "" if call.density is None else f", density {call.density:.3g}"
    return f"on {call.device}, {str(call.dtype).removeprefix('torch.')}{density}"


def _check_backend(name: str) -> None:
    if name not in (*BACKENDS, "auto"):
        raise unknown_name("backend", name, (*BACKENDS, "auto"))


def _check_op(op: str) -> str:
    from lotterykit.ops.routes import ROUTES

    names = list(dict.fromkeys(r.op for r in ROUTES))
    if not isinstance(op, str):
        raise ArgumentError(f"op must be a name, got {op!r}; valid: {', '.join(names)}")
    if op not in names:
        raise unknown_name("op", op, names)
    return op
