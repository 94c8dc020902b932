"""`report`: what is installed, what each backend lacks, one line a reason."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from lotterykit.ops.dispatch import backends

# extra -> the modules it brings
EXTRAS = {"plot": ("matplotlib",), "test": ("pytest", "hypothesis", "scipy", "ruff", "mypy")}
# what `experiments` and `cli` need beyond torch
SWEEPS = ("pydantic", "cyclopts", "pebble", "rich")


def report() -> list[str]:
    """Lines "name: value": versions, processor, devices, each backend with the reason it lacks, extras."""
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
    lines += [f"sweeps: {_missing(SWEEPS, 'lotterykit')}"]
    lines += [f"extra {extra}: {_missing(names, f'lotterykit[{extra}]')}" for extra, names in EXTRAS.items()]
    return lines


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


def _missing(modules: tuple[str, ...], requirement: str) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"missing {', '.join(absent)}: pip install '{requirement}'" if absent else "ok"
