"""Who may import whom, read from the syntax trees: the house rules of CONTRIBUTING.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lotterykit

ROOT = Path(__file__).parent.parent
SIBLINGS = {"nn", "ops", "mask", "errors"}
# room -> the rooms of ours it may import (its own always)
ALLOWED = {
    "errors": set(),
    "ops": {"errors"},
    "mask": {"errors"},
    "nn": {"ops", "mask", "errors"},
    "pruning": SIBLINGS,
    "planting": SIBLINGS,
    "training": SIBLINGS,
    "data": SIBLINGS,
    "experiments": SIBLINGS | {"pruning", "planting", "training", "data"},
    "reports": {"errors"},
    "bench": {"ops", "nn", "training", "mask", "errors"},
    "cli": {"experiments", "reports", "bench", "errors"},
    "__main__": {"cli"},
    "kernels": set(),
}
# third-party packages by room; a room that is not named may import anything declared
CORE = {"torch", "numpy", "safetensors", "scipy"}
PACKAGES = {
    **{room: CORE for room in ("ops", "mask", "nn", "pruning", "planting", "training")},
    "data": CORE | {"sklearn", "PIL"},  # inside the function that wants it: the extra [data]
    "kernels": {"torch", "triton"},
    "errors": set(),
    "reports": {"matplotlib", "jinja2", "numpy"},
}


def sources() -> list[tuple[str, Path]]:
    """(room, file) of every Python file that ships, except the lazy `lotterykit/__init__.py`."""
    found = [("kernels", path) for path in sorted((ROOT / "kernels").rglob("*.py"))]
    for path in sorted((ROOT / "lotterykit").rglob("*.py")):
        parts = path.relative_to(ROOT / "lotterykit").with_suffix("").parts
        if parts != ("__init__",):
            found.append((parts[0], path))
    return found


def imported(source: str) -> set[str]:
    """Dotted names of every import in `source`, inside functions too; `TYPE_CHECKING` blocks included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative imports hide the room they come from")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(room: str, source: str) -> list[str]:
    found = []
    for name in sorted(imported(source)):
        first, *rest = name.split(".")
        if first == "lotterykit":
            other = rest[0] if rest else ""
            if other in lotterykit._NAMES:  # handed on lazily: the room is where it stands
                other = lotterykit._NAMES[other].split(":")[0].split(".")[1]
            known = other in ALLOWED
            if known and other != room and other not in ALLOWED[room]:
                found.append(f"{room} imports {name}")
        elif first in PACKAGES_SEEN and room in PACKAGES and first not in PACKAGES[room]:
            found.append(f"{room} imports {name}")
    return found


PACKAGES_SEEN = {
    "torch", "numpy", "safetensors", "scipy", "triton", "matplotlib", "jinja2", "pydantic", "cyclopts",
    "rich", "pebble", "ray", "sklearn", "PIL", "pandas", "pyarrow", "networkx",
}  # fmt: skip


@pytest.mark.parametrize(("room", "path"), sources(), ids=lambda v: v if isinstance(v, str) else v.name)
def test_imports_stay_in_the_house(room: str, path: Path) -> None:
    assert room in ALLOWED, f"{path} stands in no room of the house"
    assert violations(room, path.read_text()) == []


def test_only_routes_names_a_kernel() -> None:
    naming = {
        path.relative_to(ROOT).as_posix()
        for _, path in sources()
        if "lotterykit.kernels" in path.read_text() and "kernels" not in path.parts
    }
    assert naming <= {"lotterykit/ops/routes.py"}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("pruning", "from lotterykit.planting.plant import plant"),
        ("ops", "import lotterykit.nn.masked"),
        ("reports", "import torch"),
        ("training", "def f():\n    from lotterykit.pruning import scores"),
        ("mask", "from lotterykit import experiments"),
        ("pruning", "from lotterykit import plant"),
    ],
)
def test_a_broken_rule_is_seen(room: str, source: str) -> None:
    assert violations(room, source)
