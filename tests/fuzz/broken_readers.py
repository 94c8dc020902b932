"""Readers that do what none should, each with its third mutant: the fuzzer must see it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from damaged import Mutant
from reader import Reader

from lotterykit.errors import ArgumentError

HELD: list[bytes] = []


def crash() -> None:
    os.abort()


def loop() -> None:
    while True:
        pass


def loop_in_c() -> None:
    sum(itertools.repeat(0))


def take_more_than_there_is() -> None:
    HELD.append(bytes(1 << 40))


def take_much() -> None:
    HELD.append(b"x" * (200 << 20))


def hide_what_was_taken() -> None:
    try:
        take_more_than_there_is()
    except MemoryError as error:
        raise ArgumentError("cannot be read") from error


def raise_another_error() -> None:
    raise KeyError("content")


def say_two_lines() -> None:
    raise ArgumentError("one\ntwo")


def load_something_else() -> None:
    raise AssertionError("not what was saved")


def _reader(act: Callable[[], None]) -> Callable[[Path], Reader]:
    def made(folder: Path) -> Reader:
        def read(path: Path, mutant: Mutant) -> None:
            if path.read_bytes() == b"2":
                act()
            if mutant.data != b"good":
                raise ArgumentError("refused")

        count = itertools.count()
        return Reader([b"good"], lambda rng: Mutant(str(next(count)).encode(), "counted"), read)

    return made


READERS: dict[str, Callable[[Path], Reader]] = {
    act.__name__: _reader(act)
    for act in (
        crash, loop, loop_in_c, take_more_than_there_is, take_much, hide_what_was_taken, raise_another_error,
        say_two_lines, load_something_else,
    )
}  # fmt: skip
