"""The API reference, from the docstrings alone: `make docs` writes it to build/docs.

    python docs/reference.py FOLDER

Exits with 1 where a public name is missing from the pages or has no docstring of its own.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pdoc

import lotterykit

# Modules with a page, by the name under which users know them.
PAGES = {
    "lotterykit": lotterykit,
    "lotterykit.data": lotterykit.data,
    "lotterykit.nn": lotterykit.nn,
    "lotterykit.ops": lotterykit.ops,
    "lotterykit.targets": lotterykit.targets,
    "lotterykit.bound": lotterykit.bound,
}


def public(module: ModuleType) -> dict[str, object]:
    """The public names of `module`: its `__all__`, or else the functions and classes that it defines."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return {name: getattr(module, name) for name in names}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def write(folder: Path) -> None:
    """The pages, as HTML that needs no network."""
    # pdoc looks for members in the module's dict, where the lazy package has none before they are used.
    vars(lotterykit).update(public(lotterykit))
    pdoc.render.configure(docformat="numpy", footer_text=f"lotterykit {lotterykit.__version__}")
    alone = [module.__name__ for name, module in PAGES.items() if module.__name__ != name]
    with warnings.catch_warnings():
        # Fields of dataclasses whose types are imported for type checkers alone are shown as written.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        # Of lotterykit come the modules of its __all__ too; those of ops are named like its functions.
        pdoc.pdoc("lotterykit", *alone, r"!lotterykit\.ops\.", output_directory=folder)


def faults(folder: Path) -> list[str]:
    """What the pages in `folder` lack, a line a name."""
    found = []
    for page, module in PAGES.items():
        path = folder / f"{module.__name__.replace('.', '/')}.html"
        html = path.read_text() if path.exists() else ""
        if not html:
            found.append(f"{page}: no page")
        for name, value in public(module).items():
            if isinstance(value, ModuleType):
                continue  # has a page of its own
            if f'<section id="{name}">' not in html:
                found.append(f"{page}.{name}: not on the page")
            if callable(value) and not written(value):
                found.append(f"{page}.{name}: no docstring")
    return found


def written(value: object) -> str:
    """The docstring that somebody wrote for `value`: neither inherited nor a dataclass's own signature."""
    text = inspect.cleandoc(value.__doc__ or "")
    signature = isinstance(value, type) and re.fullmatch(rf"{value.__name__}\(.*\)", text, re.DOTALL)
    return "" if signature else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder)
    found = faults(folder)
    print("\n".join(found) if found else folder / "index.html")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
