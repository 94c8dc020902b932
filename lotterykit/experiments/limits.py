"""Limits of a worker: memory is watched in its own process; what is said of a worker that exceeds one."""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from lotterykit.errors import LotterykitError

WATCH_SECONDS = 0.1


def resident_bytes() -> int:
    """Memory that this process holds now; on macOS the most that it ever held."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def watch_memory(limit: int, tell: Callable[[int], None], done: threading.Event) -> None:
    """Start a thread that ends this process once it holds more than `limit` bytes; `tell` is told how many
    before. It ends with `done`.

    What is resident counts, not the address space (RLIMIT_AS): torch and CUDA reserve far more than they use,
    and a failed allocation inside a native library ends in many ways.
    """

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            held = resident_bytes()
            if held > limit:
                try:
                    tell(held)
                finally:
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def over_memory(held: int, limit: int) -> LotterykitError:
    """Why a worker that held `held` bytes was killed."""
    return LotterykitError(
        f"out of memory: the worker held {held / 1e6:.0f} MB, memory_per_worker is {limit / 1e6:.0f} MB"
    )


def over_time(seconds: float, cells: int, timeout: float) -> LotterykitError:
    """Why a batch of `cells` that ran for `seconds` was killed."""
    many = f" for each of {cells} cells" if cells > 1 else ""
    return LotterykitError(f"out of time: killed after {seconds:.1f} s, timeout is {timeout:g} s{many}")
