"""Damage by one who knows the format: safetensors, pickles, the zip archives of torch.save, gzip."""

from __future__ import annotations

import gzip
import io
import pickletools
import struct
import warnings
import zipfile
from random import Random

from damaged import INTEGERS, WORDS, Raw, damaged_bytes, damaged_json, hostile_value, little, parsed, written

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "C64",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "X",
)


# -- safetensors


def damaged_safetensors(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with bytes, its header's length, its header, offsets or metadata changed."""
    (size,) = struct.unpack("<Q", data[:8])
    head, body = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(10):
        case 0 | 1:
            return damaged_bytes(rng, data, 8 + size)
        case 2:
            wrong = rng.choice(
                (*INTEGERS, size - 1, size + 1, size + 8, len(data), len(data) - 8, len(data) + 1)
            )
            return little(wrong) + data[8:], "header length"
        case 3:
            return data[: 8 + size] + damaged_bytes(rng, body, len(body) or 1)[0], "tensors"
        case 4:
            deep = rng.choice((b"[", b'{"a":')) * rng.choice((100, 200, 50_000))
            return little(len(deep)) + deep + body, "nesting"
        case 5 | 6:
            head = _damaged_entry(rng, head)
            kind = "entry"
        case 7 | 8:
            head = _damaged_metadata(rng, head)
            kind = "metadata"
        case _:
            head = damaged_json(rng, head).encode("utf-8", "surrogatepass")
            kind = "header"
    return little(len(head)) + head + body, kind


def _damaged_entry(rng: Random, head: bytes) -> bytes:
    """A tensor's offsets, shape or dtype changed: overlapping, out of range, huge, negative, reversed."""
    tree = parsed(head)
    entries = [value for name, value in tree if name != "__metadata__"]
    entry = rng.choice(entries)
    other = dict(rng.choice(entries))
    found = dict(entry)
    begin, end = found["data_offsets"]
    n = rng.choice((1, 4, end - begin, *INTEGERS))
    match rng.randrange(4):
        case 0:
            found["data_offsets"] = rng.choice(
                (other["data_offsets"], [begin + n, end + n], [begin, end + n], [end, begin],
                 [begin - n, end], [begin], [begin, end, end], [-n, n], [begin, begin], [0, n], Raw("1.5"))
            )  # fmt: skip
        case 1:
            shape = list(found["shape"])
            found["shape"] = rng.choice(
                ([n], [0, n], [n, 0], [n, n], [*shape, 1], shape[:-1], shape[::-1], [-1, *shape], [], [0.5],
                 [1] * 70, [1] * 3000, [2**31, 2**31, 0], other["shape"])
            )  # fmt: skip
        case 2:
            found["dtype"] = rng.choice(DTYPES)
        case _:
            key = rng.choice(list(found))
            found[key] = hostile_value(rng)
    entry[:] = found.items()
    if rng.random() < 0.1:  # the same name twice
        tree.append(rng.choice(tree))
    return written(tree).encode("utf-8", "surrogatepass")


def _damaged_metadata(rng: Random, head: bytes) -> bytes:
    """One text of the metadata changed; where it is JSON, its tree."""
    tree = parsed(head)
    for place, (name, value) in enumerate(tree):
        if name == "__metadata__" and value:
            at = rng.randrange(len(value))
            key, text = value[at]
            if text[:1] in ("{", "[") and rng.random() < 0.8:
                text = damaged_json(rng, text)
            else:
                text = damaged_bytes(rng, text.encode())[0].decode("utf-8", "replace")
            value[at] = (key, text)
            tree[place] = (name, value)
    return written(tree).encode("utf-8", "surrogatepass")


# -- pickles


def fragments(marker: str) -> tuple[bytes, ...]:
    """Stretches of a pickle that no batch needs; those that call something would make the folder `marker`."""
    text = marker.encode()
    return (
        b"cposix\nmkdir\n(V" + text + b"\ntR",
        b"(V" + text + b"\niposix\nmkdir\n",
        b"\x8c\x05posix\x8c\x05mkdir\x93\x8c" + bytes([len(text)]) + text + b"\x85R",
        b"cbuiltins\nexec\n(V__import__('os').mkdir('" + text + b"')\ntR",
        b"cnumpy\nndarray\n(L1000000000000L\ntR", b"ctorch\nzeros\n(L1000000000000L\ntR",
        b"r\xff\xff\xff\x7f", b"p9999999999\n", b"\x8e" + struct.pack("<Q", 2**40),
        b"\x95" + struct.pack("<Q", 2**60), b"\x8b" + struct.pack("<i", 2**31 - 1), b"T\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff", b"B\xff\xff\xff\xff", b"\x8d" + struct.pack("<Q", 2**62), b"\x8a\xff",
        b"I" + b"9" * 5000 + b"\n", b"L" + b"9" * 5000 + b"L\n", b"S'\\x\n", b"V\\ud800\n", b"Pname\n",
        b"]" * 3000, b"(" * 3000, b"}" * 300, b"]q\x01(h\x01h\x01h\x01e", b")" + b"\x86" * 3,
        b"K\x01" + b"2\x86" * 40, b"K\x01q\x03" + b"h\x03\x86q\x03" * 40, b"0" * 5, b"1", b".",
        b"\x82\x01", b"\x97", b"\x98",
    )  # fmt: skip


def places(data: bytes) -> list[int]:
    """Where the operations of a pickle begin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [position for _, _, position in pickletools.genops(data) if position is not None]


def damaged_pickle(rng: Random, data: bytes, at: list[int], hostile: tuple[bytes, ...]) -> tuple[bytes, str]:
    """A pickle with bytes or whole operations changed; `at` is `places(data)`, `hostile` `fragments(...)`."""
    kind = rng.randrange(5)
    place, end = rng.choice(at), len(data)
    if kind == 0:
        return damaged_bytes(rng, data)
    if kind == 1:
        fragment = rng.choice(hostile)
        return data[:place] + fragment + data[place:], f"fragment {fragment[:12]!r}"
    if kind == 2:
        fragment = rng.choice(hostile)
        return data[:place] + fragment + b".", f"end in {fragment[:12]!r}"
    if kind == 3:  # an operation removed, repeated, or moved
        after = min((p for p in at if p > place), default=end)
        other = rng.choice(at)
        part = data[place:after]
        rest = rng.choice((data[:place] + data[after:], data))
        return rest[:other] + part * rng.choice((1, 1, 2, 500)) + rest[other:], "operations"
    copy = bytearray(data)
    copy[place] = rng.choice(pickletools.opcodes).code.encode("latin-1")[0]
    return bytes(copy), "opcode"


# -- archives


def damaged_zip(rng: Random, data: bytes, hostile: tuple[bytes, ...]) -> tuple[bytes, str]:
    """A file of torch.save with bytes changed, or packed anew: its pickle damaged, records that inflate,
    are named for other folders, are missing or stand twice."""
    kind = rng.randrange(5)
    if kind == 0:
        return damaged_bytes(rng, data, 200)
    if kind == 1:  # the directory at the end
        return data[:-400] + damaged_bytes(rng, data[-400:], 400)[0], "directory"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    packing, name = zipfile.ZIP_STORED, "?"
    at = rng.randrange(len(records))
    if kind == 2:
        at = next(i for i, (name, _) in enumerate(records) if name.endswith("data.pkl"))
        name, content = records[at]
        content, what = damaged_pickle(rng, content, places(content), hostile)
        records[at] = (name, content)
        name = f"pickle, {what}"
    elif kind == 3:
        packing = zipfile.ZIP_DEFLATED
        size = rng.choice((0, 100, 1 << 20, 200 << 20 if rng.random() < 0.05 else 1 << 16))
        records[at] = (records[at][0], bytes(size))
        name = f"inflates to {size}"
    else:
        folder = records[at][0].rpartition("/")[0]
        other = rng.choice(
            (f"{folder}/../../{rng.choice(WORDS)}", "/tmp/x", records[0][0], "", f"{folder}/data/99")
        )
        changed = (other.replace("\0", "_"), records[at][1])
        replaced = [*records[:at], changed, *records[at + 1 :]]
        records = rng.choice((replaced, [*records, changed], records[:at]))
        name = "names"
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packing) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for record, content in records:
            archive.writestr(zipfile.ZipInfo(record), content, compress_type=packing)
    return out.getvalue(), name


def damaged_gzip(rng: Random, plain: bytes, bombs: tuple[bytes, ...]) -> tuple[bytes, str]:
    """Bytes packed by gzip, before or after they are damaged; or with one of `bombs` (packed) behind them."""
    kind = rng.randrange(4)
    if kind == 0:
        data, what = damaged_bytes(rng, plain, 16)
        return gzip.compress(data, 1, mtime=0), f"{what} in gzip"
    packed = gzip.compress(plain, 1, mtime=0)
    if kind == 1:
        return damaged_bytes(rng, packed, 20)
    if kind == 2:
        return packed + rng.choice(bombs), "bomb"
    head = bytes([31, 139, 8, rng.randrange(32)]) + rng.randbytes(6)  # names, comments, extra fields
    return head + rng.choice((b"a" * 5000, b"\0", struct.pack("<H", 65535))) + packed[10:], "gzip header"
