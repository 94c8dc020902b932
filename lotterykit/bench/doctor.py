"""`report`: what is installed, what each backend lacks, one line a reason."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch

from lotterykit.ops.dispatch import backends


def report() -> list[str]:
    """Lines "name: value": versions, processor, devices, each backend with the reason it lacks, packages."""
    lines = [
        f"lotterykit: {_version('lotterykit')}",
        f"python: {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch: {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        f"triton: {_version('triton')}",
        f"cpu: {cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory = device.total_memory / 2**30
            lines.append(f"gpu {index}: {device.name}, sm_{device.major}{device.minor}, {memory:.0f} GiB")
    else:
        lines.append("gpu: torch sees no CUDA device")
    lines += [f"backend {name}: {reason or 'ok'}" for name, reason in backends().items()]
    for extra, packages in required(metadata.requires("lotterykit") or []).items():
        absent = [name for name in packages if _version(name) == "not installed"]
        wanted = f"lotterykit[{extra}]" if extra else "lotterykit"
        state = f"missing {', '.join(absent)}: pip install '{wanted}'" if absent else "ok"
        lines.append(f"{f'extra {extra}' if extra else 'requirements'}: {state}")
    return lines


def required(lines: list[str]) -> dict[str, list[str]]:
    """Extra ("" for none) -> the packages it needs on this system, from a distribution's requirement lines.

    >>> required(["torch>=2.11", 'matplotlib>=3.9; extra == "plot"'])
    {'': ['torch'], 'plot': ['matplotlib']}
    """
    packages: dict[str, list[str]] = {}
    for line in lines:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        markers = dict(re.findall(r"(\w+) == ['\"](.*?)['\"]", line))
        if markers.get("platform_system", platform.system()) == platform.system():
            packages.setdefault(markers.get("extra", ""), []).append(name)
    return packages


def cpu_name() -> str:
    """The processor's marketing name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
