"""`Reader`: what is fuzzed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from damaged import Mutant


@dataclass(frozen=True)
class Reader:
    """`mutant` makes a damaged file, `read` reads one: it raises `LotterykitError`, or `AssertionError` where
    the content is not what it should be. `samples` are the files as they are."""

    samples: list[bytes]
    mutant: Callable[[Random], Mutant]
    read: Callable[[Path, Mutant], None]
    suffix: str = ""


def of(
    samples: list[bytes], damaged: Callable[[Random, bytes], tuple[bytes, str]]
) -> Callable[[Random], Mutant]:
    """Mutants of any of the samples."""

    def mutant(rng: Random) -> Mutant:
        origin = rng.randrange(len(samples))
        return Mutant(*damaged(rng, samples[origin]), origin)

    return mutant


def saved_by(save: Callable[[Path], None], folder: Path) -> bytes:
    save(folder / "sample")
    data = (folder / "sample").read_bytes()
    (folder / "sample").unlink()
    return data


def check_not_called(marker: Path) -> None:
    if marker.exists():
        os.rmdir(marker)
        raise AssertionError("what the file names was called")
