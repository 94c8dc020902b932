"""The errors lotterykit raises: all derive from `LotterykitError`; bad arguments are also `ValueError`s."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ArgumentError(f"unknown {kind} {str(got)!r}{hint} Valid: {', '.join(map(repr, names))}")


def check_density(density: object, *, what: str = "density") -> float:
    """`density` (kept / total) as a float in (0, 1]; raises `ArgumentError` otherwise."""
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise ArgumentError(f"{what} must be a number in (0, 1], got {density!r}")
    if not 0.0 < density <= 1.0:
        raise ArgumentError(f"{what} is kept / total and must lie in (0, 1], got {density!r}")
    return float(density)


def check_seed(seed: object) -> int:
    """`seed` as an int in [0, 2**63); raises `ArgumentError` otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed must be an int in [0, 2**63), got {seed!r}")
    return seed
