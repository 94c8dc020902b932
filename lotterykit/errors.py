"""The errors lotterykit raises: all derive from `LotterykitError`; bad arguments are also `ValueError`s."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST = 200  # characters of a value or a reason in a message


class LotterykitError(Exception):
    """Root of every error that lotterykit raises on purpose."""


class ArgumentError(LotterykitError, ValueError):
    """A bad argument: the message says what was asked, what was got and what is allowed."""


class BackendError(LotterykitError, RuntimeError):
    """No allowed backend can serve a call; the message holds one reason per route."""


class StoreError(LotterykitError):
    """A result store is corrupt, foreign, from a newer version, or cannot be written."""


def unknown_name(kind: str, got: object, valid: Iterable[object]) -> ArgumentError:
    """The error for a name that does not exist: lists the valid ones and the nearest.

    >>> str(unknown_name("method", "snipp", ["snip", "grasp"]))
    "unknown method 'snipp'; did you mean 'snip'? Valid: 'snip', 'grasp'"
    """
    names = [str(v) for v in valid]
    text = got if isinstance(got, str) else shown(got)
    near = difflib.get_close_matches(text[:LONGEST], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ArgumentError(f"unknown {kind} {shown(text)}{hint} Valid: {', '.join(map(repr, names))}")


class _Shown(reprlib.Repr):
    """`repr`, cut short: a value read from a file may be huge, deep, or too long to be printed at all."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, LONGEST, LONGEST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= 2 * LONGEST else f"an integer of {bits} bits"


def shown(value: object) -> str:
    """`repr(value)` for a message: one line, at most about `LONGEST` characters.

    >>> shown([1, "a"]), shown(1 << 1000)
    ("[1, 'a']", 'an integer of 1001 bits')
    """
    return brief(_Shown().repr(value))


def brief(text: object) -> str:
    """A reason that another library gives, as one line of at most about `LONGEST` characters.

    >>> brief("first\\n  second")
    'first second'
    """
    words = " ".join(str(text).split())
    return words if len(words) <= LONGEST + 3 else f"{words[:LONGEST]}..."


def check_density(density: object, *, what: str = "density") -> float:
    """`density` (kept / total) as a float in (0, 1]; raises `ArgumentError` otherwise."""
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise ArgumentError(f"{what} must be a number in (0, 1], got {shown(density)}")
    if not 0.0 < density <= 1.0:
        raise ArgumentError(f"{what} is kept / total and must lie in (0, 1], got {shown(density)}")
    return float(density)


def check_seed(seed: object) -> int:
    """`seed` as an int in [0, 2**63); raises `ArgumentError` otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed must be an int in [0, 2**63), got {shown(seed)}")
    return seed
