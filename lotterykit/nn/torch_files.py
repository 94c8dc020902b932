"""What a file of `torch.save` may ask of memory, checked before torch reads it.

`weights_only=True` runs nothing that a file names, but it inflates archives, allocates what a pickle says,
calls bytearray and hashes nested tuples: a file of a kilobyte could take all memory, or years.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lotterykit.errors import ArgumentError, brief

ZIP_MAGIC = b"PK\x03\x04"  # by which torch tells an archive from the older format
OLD_PICKLES = 5  # of the older format: magic number, version, system, content, names of the storages
MAX_EXPANSION = 4  # bytes of all tensors, views that share a storage and all, to bytes of the file
MAX_OBJECTS = 10**7  # that one value is made of; a network with its optimizer has a hundredth of it
NAMED = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|complex)|_codecs encode"
    r"|torch\._utils _rebuild_\w+|torch\._tensor _rebuild_\w+|torch\.nn\.parameter Parameter"
    r"|torch(\.storage)? \w*Storage|torch (Size|device|[a-z]\w*)|torch\.serialization _get_layout"
)
"""What a pickle may name; of these torch refuses all that could run something. `bytearray` and the tensor
types, which torch allows, are left out: calling them allocates any number of bytes."""


def check_file(path: Path) -> None:
    """Raises `ArgumentError` where reading `path` could take more memory than the file has bytes.

    Archives must be stored, not compressed, as torch writes them, and have each name once; lengths in
    pickles must lie within the file."""
    if path.exists() and not path.is_file():
        raise ArgumentError("no regular file")
    with path.open("rb") as file:
        packed = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        size = path.stat().st_size
        if packed:
            _check_archive(file, size)
        elif size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(OLD_PICKLES):
                    _check_pickle(content)


def check_tensors(values: Iterable[Tensor], size: int) -> None:
    """Raises `ArgumentError` where the tensors of a file of `size` bytes are more than it can hold: a view
    may repeat one number as often as it likes."""
    total = 0
    for value in values:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise ArgumentError(f"a tensor that is not plain: {value.dtype}, {value.layout}")
        total += value.numel() * value.element_size()
    if total > MAX_EXPANSION * size:
        raise ArgumentError(
            f"its tensors stand for {total} bytes, more than {MAX_EXPANSION} times the file's"
        )


def _check_archive(file: IO[bytes], size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            names = {record.filename.lower() for record in records}
            if len(names) < len(records):
                raise ArgumentError("an archive with two records of one name")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ArgumentError("an archive with compressed records, which torch does not write")
            if sum(record.file_size for record in records) > size:
                raise ArgumentError("an archive whose records are larger than the file")
            for record in records:
                if record.filename.lower().endswith(".pkl"):
                    _check_pickle(io.BytesIO(archive.read(record)))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ArgumentError(f"a damaged archive: {brief(error)}") from error


def _check_pickle(content: Any) -> None:
    """Follow one pickle of `content`, an open file, to its end."""
    try:
        sizes = _Sizes()
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not NAMED.fullmatch(str(argument)):
                raise ArgumentError(f"it names {brief(argument)}, which no checkpoint needs")
            sizes.follow(opcode, argument)
    except (ValueError, IndexError, KeyError, Warning) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"a damaged pickle: {brief(error)}") from error


class _Sizes:
    """How many objects each value on a pickle's stack is made of, those that stand in it twice counted twice:
    a tuple of a tuple twice, forty times over, takes a hundred bytes, and years where it is a dict's key."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[Any, int] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = opcode.name, self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken, size = opcode.stack_before, 1
            if pickletools.markobject in taken:
                start = self.marks.pop()
                size += sum(stack[start:])
                del stack[start:]
                taken = taken[: taken.index(pickletools.markobject)]
            size += sum(stack.pop() for _ in taken)
            if size > MAX_OBJECTS:
                raise ArgumentError(f"a value of more than {MAX_OBJECTS} objects")
            stack += [size] * len(opcode.stack_after)
