"""Pickled batches read without unpickling: nothing that a pickle names is ever imported or called.

The operations of the pickle are followed by an interpreter of ours that knows plain values and the few names
by which numpy pickles an array of bytes; a call is kept as a record, and only an array is ever made of one.
(`pickle.Unpickler.find_class` would not do: numpy's reconstruction and the memo allocate what a file asks.)
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lotterykit.errors import ArgumentError

NAMES = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # how Python 3 writes bytes for Python 2
}
"""What a batch may name, as pickle's GLOBAL writes it."""

LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FOLLOWED = {
    *("PROTO", "FRAME", "MARK", "STOP", "TUPLE", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *LITERALS, *CONSTANTS, *EMPTY, *TUPLES,
}  # fmt: skip

DAMAGE = (ValueError, IndexError, KeyError, Warning)  # a warning (of bad escapes) where warnings are errors
LONGEST_KEY = 100  # keys are copied where they are bytes
STEPS = 10_000  # operations of a pickle beyond those of its images
STEPS_PER_IMAGE = 16  # a label, a coarse one and a file name take 8 in protocol 0


@dataclass(frozen=True, eq=False)
class Name:
    """One of the values of `NAMES`."""

    name: str


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for, and that nobody makes."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_batch(data: bytes | bytearray, path: Path, most: int) -> dict[str, Any]:
    """The dict that a pickle of protocol 0 to 5 holds, its keys as str, its bytes of arrays as `Call`s.

    `path` is for messages only. A pickle of more operations than `most` images need is refused while it is
    followed: each may make an object, so that memory would be many times the file.
    Raises `ArgumentError` for what is damaged, and by name for anything but
    dicts, lists, tuples, text, bytes, integers and arrays of bytes."""
    try:
        batch = _Interpreter(path).run(bytes(data), STEPS + most * STEPS_PER_IMAGE)
    except DAMAGE as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path}: damaged pickle: {error!r:.120}") from None
    if not isinstance(batch, dict):
        raise ArgumentError(f"{path}: found a pickled {type(batch).__name__}, expected a dict")
    return batch


def array(value: object, path: Path) -> np.ndarray:
    """The uint8 array that a record of `read_batch` stands for; raises `ArgumentError` where it is none."""
    shape: Any
    if isinstance(value, Call) and value.name == "reconstruct":
        parts = value.state
        fits = isinstance(parts, tuple) and len(parts) == 5
        _, shape, dtype, columns_first, raw = parts if fits else (None,) * 5
    elif isinstance(value, Call) and value.name == "frombuffer" and len(value.arguments) == 4:
        raw, dtype, shape, order = value.arguments
        columns_first = order == "F"
    else:
        shape = dtype = raw = columns_first = None
    if not isinstance(dtype, Call) or dtype.name != "dtype" or dtype.arguments[:1] not in (("u1",), (b"u1",)):
        raise ArgumentError(f"{path}: found no pickled numpy array of dtype uint8 where one was expected")
    held = _raw(raw)
    sized = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape[:5])
    if held is None or not sized or len(shape) > 4 or math.prod(shape) != len(held):
        found = "no bytes" if held is None else f"{len(held)} bytes"
        raise ArgumentError(f"{path}: found {found} in a pickled array, expected as many as its shape says")
    return np.frombuffer(held, dtype=np.uint8).reshape(shape, order="F" if columns_first is True else "C")


def _raw(value: object) -> bytes | bytearray | None:
    """The bytes of an array: as they are, as Python 2's str, or as text to be encoded."""
    value = _encoded(value)
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return value if isinstance(value, bytes | bytearray) else None


def _encoded(value: object) -> object:
    """The text, one character a byte, of bytes as Python 3 writes them for Python 2; else `value` itself."""
    if isinstance(value, Call) and value.name == "encode" and value.arguments[1:] == ("latin1",):
        return value.arguments[0]
    return value


class _Interpreter:
    """The stack machine of pickle, over values that it makes itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes, most: int) -> object:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if number == most:
                raise ArgumentError(f"{self.path}: the pickle asks for more than {most} operations")
            name = opcode.name
            if name not in FOLLOWED:
                raise ArgumentError(
                    f"{self.path}: the pickle asks for the operation {name}, which no batch needs"
                )
            if name == "STOP" and position is not None and position + 1 != len(data):
                raise ValueError(f"{len(data) - position - 1} bytes after its end")
            self.step(name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack.append(tuple(reversed([stack.pop() for _ in range(TUPLES[name])])))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "LIST"):
            items = self.since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            self.top(list).extend(items)
        elif name == "DICT":
            items = self.since_mark()
            stack.append({})
            self.set(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self.since_mark()
            self.set(items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"):
            self.call(name, argument)

    def call(self, name: str, argument: Any) -> None:
        """GLOBAL, STACK_GLOBAL, REDUCE and BUILD: names are looked up in `NAMES`, calls are recorded."""
        if name == "STACK_GLOBAL":
            last, module = self.stack.pop(), self.stack.pop()
            if not isinstance(last, str) or not isinstance(module, str):
                raise ValueError("a name that is no text")
            argument = f"{module} {last}"
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if argument not in NAMES:
                asked = ".".join(argument.split(" ", 1))
                raise ArgumentError(
                    f"{self.path}: the pickle asks for {asked!r:.120}, which is never loaded: a batch holds "
                    "only dicts, lists, text, bytes, integers and numpy arrays of uint8"
                )
            self.stack.append(Name(NAMES[argument]))
            return
        last = self.stack.pop()
        if name == "BUILD":
            self.top(Call).state = last
        elif isinstance(last, tuple) and isinstance(function := self.stack.pop(), Name):
            self.stack.append(Call(function.name, last))
        else:
            raise ValueError("a call of what is no function")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def set(self, items: list[Any]) -> None:
        into = self.top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            text = _encoded(key)
            if not isinstance(text, str | bytes) or len(text) > LONGEST_KEY:
                raise ValueError(f"a key of type {type(key).__name__}")
            into[text if isinstance(text, str) else text.decode("latin-1")] = value

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} was expected")
        return self.stack[-1]
