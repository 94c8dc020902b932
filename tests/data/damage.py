"""Damaged copies of a file, and what a reader may do with one."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lotterykit.errors import ArgumentError


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` copies, cut short or with bytes changed, removed or added; half of them in the first 64."""
    draw = random.Random(seed)
    for i in range(count):
        copy = bytearray(data)
        place = draw.randrange(min(64, len(copy)) if draw.random() < 0.5 else len(copy))
        match i % 5:
            case 0:
                del copy[place:]
            case 1 | 2:
                for _ in range(draw.randint(1, 4)):
                    copy[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
                    place = draw.randrange(min(len(copy), place + 8))
            case 3:
                del copy[place : place + draw.randint(1, 8)]
            case 4:
                copy[place:place] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        yield bytes(copy)


def read_or_refused(read: Callable[[Path], Any], path: Path, most: int = 4 << 20) -> Any:
    """What `read` makes of `path`, or the `ArgumentError`, one line that names the file; anything else is
    raised. Never more than `most` bytes at a time."""
    tracemalloc.start()
    result: Any = None
    try:
        result = read(path)
    except ArgumentError as error:
        result = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if isinstance(result, ArgumentError):
        assert str(result).startswith(f"{path}: ")
        assert "\n" not in str(result)
        assert len(str(result)) < 600
    assert peak < most
    return result
