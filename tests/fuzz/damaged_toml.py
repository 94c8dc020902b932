"""Damage to a TOML file by one who knows what a spec is read into."""

from __future__ import annotations

import re
from random import Random

from damaged import damaged_bytes

TOML_VALUES = (
    "9" * 5000,
    "0x" + "f" * 5000,
    "0b" + "1" * 20000,
    "-9223372036854775809",
    "1e999",
    "nan",
    "-inf",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "25:61:00",
    "true",
    '""',
    '"x"',
    '"truth"',
    '"a\\u0000b"',
    '"""\na\nb"""',
    "'''a'''",
    "[]",
    "{}",
    "[[]]",
    "[1, [2, [3]]]",
    "{a = {b = {c = 1}}}",
    "[" * 200 + "]" * 200,
    "[" * 5000,
    "[" * 5000 + "]" * 5000,
    "{a=" * 300 + "1" + "}" * 300,
    '"' + "x" * 50_000 + '"',
    "[" + "1," * 3000 + "]",
    '["a", 1, 2.0]',
    "0",
    "-1",
    "0.5",
    "1.0",
    "1_0",
    "[0.5, 0.1]",
    "[true]",
    "10**9",
    "1000001",
    "1000000",
    "99999999999999999999",
    '"nan"',
    '"../../x"',
    "00",
    "\0",
    "=",
    "",
)
TOML_LINES = (
    "a." * 40 + "b = 1",
    "a." * 3000 + "b = 1",
    "[" + "a." * 3000 + "b]",
    "[[" + "a." * 500 + "b]]",
    "self = 1",
    "model_config = 1",
    "__init__ = 1",
    "seeds = 3",
    "[spec]",
    "[grid]",
    "[[grid]]",
    "[spec.method]",
    "density.a = 1",
    '"" = 1',
    '"a\\nb" = 1',
    "\ufeff",
    "# \x01",
    "\r",
    "spec = 1",
    "grid = [1]",
    "oracle = 0",
    "seeds = [1, 2, 2]",
    "seeds = []",
    "x = {",
    "'self' = {}",
    "values = 1",
)


def damaged_toml(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A TOML file with bytes, values or whole lines changed."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data, len(data))
    lines = data.decode().splitlines()
    kinds = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.choice(("value", "value", "line", "remove", "twice", "key"))
        kinds.append(kind)
        match kind:
            case "value" if "=" in lines[at]:
                lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(TOML_VALUES)}"
            case "line":
                lines.insert(at, rng.choice(TOML_LINES))
            case "remove" if len(lines) > 1:
                del lines[at]
            case "twice":
                lines.insert(rng.randrange(len(lines)), lines[at])
            case "key":
                lines[at] = re.sub(
                    r"^\w+", rng.choice(("self", "seed", "seeds", "width", "rounds", "shots", "x")), lines[at]
                )
    return "\n".join(lines).encode("utf-8", "surrogatepass"), "+".join(kinds)
