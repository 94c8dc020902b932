"""Seeds for what has a name: `derived_seed`."""

from __future__ import annotations

import hashlib


def derived_seed(text: str) -> int:
    """A seed in [0, 2**63) for what `text` names.

    >>> derived_seed("batch order 0 0") == derived_seed("batch order 0 0") != derived_seed("batch order 0 1")
    True
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
