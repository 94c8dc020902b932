"""Damaged bytes and JSON: what `hostile.py` changes in any file, whatever its format."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

INTEGERS = (
    *(
        0,
        1,
        2,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**40,
        2**53 + 1,
    ),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
WORDS = (
    "",
    "x",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "\0",
    "\n",
    "é" * 40,
    "init",
    "self",
    "nan",
    "\u202e",
)


class Mutant(NamedTuple):
    """A damaged file: `origin`, the number of the sample that it was; `kind`, what was done to it."""

    data: bytes
    kind: str
    origin: int = 0


class Pairs(list):  # type: ignore[type-arg]
    """A JSON object as a list of (key, value), so that a key can stand twice."""


class Raw(str):
    """JSON text that is written as it is."""


def damaged_bytes(rng: Random, data: bytes, head: int = 64) -> tuple[bytes, str]:
    """A copy with bits, bytes, integers or stretches changed; half of them in the first `head` bytes."""
    copy = bytearray(data)
    kinds = [kind for kind in BYTE_KINDS if rng.random() < 0.15] or [rng.choice(list(BYTE_KINDS))]
    for kind in kinds:
        if copy:
            place = rng.randrange(min(head, len(copy)) if rng.random() < 0.5 else len(copy))
            BYTE_KINDS[kind](rng, copy, place)
    return bytes(copy), "+".join(kinds)


def _flip(rng: Random, copy: bytearray, place: int) -> None:
    copy[place] ^= 1 << rng.randrange(8)


def _byte(rng: Random, copy: bytearray, place: int) -> None:
    copy[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: Random, copy: bytearray, place: int) -> None:
    del copy[place:]


def _remove(rng: Random, copy: bytearray, place: int) -> None:
    del copy[place : place + rng.choice((1, 2, 4, 8, 64, 1000))]


def _insert(rng: Random, copy: bytearray, place: int) -> None:
    copy[place:place] = rng.choice((rng.randbytes(rng.randint(1, 16)), bytes(rng.choice((1, 8, 500)))))


def _integer(rng: Random, copy: bytearray, place: int) -> None:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = rng.choice((*INTEGERS, len(copy), len(copy) + 1, max(0, len(copy) - 8)))
    copy[place : place + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _repeat(rng: Random, copy: bytearray, place: int) -> None:
    part = copy[place : place + rng.choice((1, 8, 64, 512))]
    copy[place:place] = part * rng.choice((1, 2, 30))


def _move(rng: Random, copy: bytearray, place: int) -> None:
    part = copy[place : place + rng.choice((4, 32, 512))]
    other = rng.randrange(len(copy))
    copy[other : other + len(part)] = part


BYTE_KINDS: dict[str, Callable[[Random, bytearray, int], None]] = {
    "flip": _flip,
    "byte": _byte,
    "cut": _cut,
    "remove": _remove,
    "insert": _insert,
    "integer": _integer,
    "repeat": _repeat,
    "move": _move,
}


def hostile_value(rng: Random) -> Any:
    """A JSON value that nobody asked for."""
    match rng.randrange(12):
        case 0:
            return rng.choice(INTEGERS) * rng.choice((1, -1))
        case 1:
            return Raw(
                rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-0", "1e-999", "0.1e1", "00", "+1"))
            )
        case 2:
            return Raw(rng.choice("123456789") * rng.choice((30, 400, 5000)))
        case 3:
            return rng.choice(WORDS)
        case 4:
            depth = rng.choice((2, 50, 127, 128, 500, 2000, 20_000))
            return Raw(
                rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
            )
        case 5:
            return rng.choice((None, True, False, 0.5, -1, 1.0))
        case 6:
            return rng.choice(([], Pairs(), [1, "a", None], Pairs([("a", 1), ("a", 2)])))
        case 7:
            return rng.choice(("a", "é", "\ud800")) * rng.choice((1, 100, 100_000))
        case 8:
            return Raw(rng.choice(('"\\ud800"', '"\\x"', '"', "'a'", "nul", "/**/1", '"\\u0000"', "")))
        case 9:
            return [rng.choice(INTEGERS) for _ in range(rng.choice((1, 2, 9, 300)))]
        case 10:
            return Raw("[" + "0," * rng.choice((10, 10_000)) + "0]")
        case _:
            return rng.choice(("__class__", "__proto__", "${HOME}", "`id`", "%s%n", "F32", "BOOL"))


def parsed(text: str | bytes) -> Any:
    """JSON with its objects as `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(value: Any) -> str:
    """The JSON text of what `parsed` and `hostile_value` give."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def damaged_tree(rng: Random, tree: Any) -> Any:
    """`tree`, which is changed in place: values replaced, removed, renamed, put twice or swapped."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, int]] = []
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, list):
                places += [(node, i) for i in range(len(node))]
                waiting += [v for _, v in node] if isinstance(node, Pairs) else node
        if not places:
            return hostile_value(rng)
        node, at = rng.choice(places)
        keyed = isinstance(node, Pairs)
        match rng.randrange(7):
            case 0 | 1 | 2:
                value = hostile_value(rng)
                node[at] = (node[at][0], value) if keyed else value
            case 3:
                del node[at]
            case 4:
                again = hostile_value(rng) if rng.random() < 0.5 else node[at][1] if keyed else node[at]
                node.append((node[at][0], again) if keyed else again)
            case 5:
                other = rng.randrange(len(node))
                if keyed:  # values change places, keys stay
                    a, b = node[at], node[other]
                    node[at], node[other] = (a[0], b[1]), (b[0], a[1])
                else:
                    node[at], node[other] = node[other], node[at]
            case _ if keyed:
                node[at] = (rng.choice((*WORDS, node[at][0] + "x")), node[at][1])
    return tree


def damaged_json(rng: Random, text: str | bytes) -> str:
    """JSON text with its tree changed; now and then it is nested too deep, or no object at all."""
    if rng.random() < 0.05:
        return written(hostile_value(rng))
    return written(damaged_tree(rng, parsed(text)))


def little(number: int, size: int = 8) -> bytes:
    """`number` modulo 256**size as little-endian bytes."""
    return struct.pack("<Q", number % 2**64)[:size]
