"""`READERS`: every reader of files, with files that it takes, how they are damaged, and what must hold of a
damaged file that loads all the same. A row here is fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import image_files
import network_files
import sweep_files
from reader import Reader

READERS: dict[str, Callable[[Path], Reader]] = {
    "tickets": network_files.tickets,
    "masks": network_files.mask_files,
    "journals": network_files.journals,
    "checkpoints": network_files.checkpoints,
    "sweeps.toml": sweep_files.sweeps,
    "searches.toml": sweep_files.searches,
    "stores": sweep_files.stores,
    "idx": image_files.idx_files,
    "cifar binary": image_files.cifar_binary,
    "cifar pickled": image_files.cifar_pickled,
    "jpeg": image_files.jpegs,
    "bench results": sweep_files.benchmark_results,
}
