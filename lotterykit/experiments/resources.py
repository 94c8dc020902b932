"""`Resources`: what a worker of a sweep may use, and where Ray finds its workers. Light, for `--help`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from lotterykit.errors import ArgumentError

WORKER_BYTES = 330 << 20  # a process with torch loaded and nothing else
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
RAY_ONLY = ("ray_address", "cpus_per_task", "gpus_per_task")


@dataclass(frozen=True)
class Resources:
    """What a worker may use. `checked` validates; None is no limit, and Ray's default."""

    timeout: float | None = None
    """Seconds a cell may take (a batch: that for each of its cells); what takes longer is killed."""
    memory_per_worker: int | str | None = None
    """Memory a worker may hold, in bytes or as 4GB; one that holds more is killed."""
    ray_address: str | None = None
    """executor ray: a running cluster, host:port or auto; without it Ray starts on this machine."""
    cpus_per_task: float | None = None
    """executor ray: CPUs a batch takes, 1 by default; may be a fraction."""
    gpus_per_task: float | None = None
    """executor ray: GPUs a batch takes, 1 by default with a CUDA device, else 0; may be a fraction."""

    def checked(self, executor: str, device: str) -> Resources:
        """These, with bytes as an int and Ray's defaults filled in. Raises `ArgumentError` for a value out of
        range and for what `executor` cannot do."""
        asked = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        refused = {"inline": tuple(asked), "local": RAY_ONLY}.get(executor, ())
        for name in asked:
            if name in refused:
                able = "'ray'" if name in RAY_ONLY else "'local' or 'ray'"
                raise ArgumentError(f"{name} needs executor {able}, got {executor!r}")
        timeout = None if self.timeout is None else _number("timeout", self.timeout, "seconds above 0")
        memory = None if self.memory_per_worker is None else _bytes(self.memory_per_worker)
        if executor != "ray":
            return Resources(timeout, memory)
        return Resources(timeout, memory, *self._of_ray(device))

    def _of_ray(self, device: str) -> tuple[str | None, float, float]:
        address = self.ray_address
        if address is not None and address != "auto" and not re.fullmatch(r"[^\s/]+:\d{1,5}", address):
            raise ArgumentError(
                f"ray_address must be host:port or 'auto', got {address!r}; run the sweep on a node of the "
                "cluster: results of a remote client would be lost with its connection"
            )
        if device not in ("cpu", "cuda"):
            raise ArgumentError(f"Ray chooses the GPU of a batch: device must be cpu or cuda, got {device!r}")
        default = 0.0 if device == "cpu" else 1.0
        asked = self.gpus_per_task
        gpus = default if asked is None else _number("gpus_per_task", asked, "GPUs, at least 0", zero=True)
        if gpus > 1 and gpus != int(gpus):
            raise ArgumentError(f"gpus_per_task must be at most 1 or a whole number, got {gpus}")
        if (gpus > 0) != (device == "cuda"):
            allowed = "above 0" if device == "cuda" else "0"
            raise ArgumentError(f"gpus_per_task must be {allowed} with device {device}, got {gpus:g}")
        cpus = self.cpus_per_task
        return address, 1.0 if cpus is None else _number("cpus_per_task", cpus, "CPUs above 0"), gpus

    def flags(self) -> list[str]:
        """The words of a command line that ask for these again."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        named = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
        return [word for name, value in named.items() for word in (name, str(value))]


def _number(name: str, value: Any, wanted: str, *, zero: bool = False) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ArgumentError(f"{name} must be a number of {wanted}, got {value!r}")
    return float(value)


def _bytes(value: int | str) -> int:
    """
    >>> _bytes("4GB"), _bytes("1.5 GiB"), _bytes("4e9")
    (4000000000, 1610612736, 4000000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\d{1,2})?)\s*([a-zA-Z]*)\s*", str(value))
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or isinstance(value, bool):
        raise ArgumentError(f"memory_per_worker must be bytes, or text like 4GB or 500MB, got {value!r}")
    count = int(float(found[1]) * unit)
    if count < WORKER_BYTES:
        raise ArgumentError(
            f"memory_per_worker must be at least {WORKER_BYTES} bytes, what torch alone takes, got {count}"
        )
    return count
