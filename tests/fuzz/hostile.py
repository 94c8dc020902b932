"""Damaged files for every reader: each is refused by one line, or read as what it holds. `make fuzz`.

    python tests/fuzz/hostile.py [--mutants N] [--seed N] [--readers NAME ...] [--from N]

Mutants are read in a process of their own under limits of memory and time. One that is neither refused by a
`LotterykitError` nor loaded rightly is saved with its reason, in build/fuzz or --out FOLDER. Mutant i of a
seed is always the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import resource
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in ("", "tests/fuzz", "tests/data", "tests/experiments"):
    sys.path.insert(0, str(ROOT / folder))

MEMORY = 512 << 20  # bytes of address space that a reader may take beyond what the process has
GROWTH = 96 << 20  # bytes of memory in use that one mutant may add to the most so far
SECONDS = 5  # of processor time a mutant
BLOCKED = 120  # seconds until a mutant that waits for something is given up
LONGEST = 1500  # characters of the line that refuses a file
MOST_KEPT = 200  # failed files of a reader
STATE = struct.Struct("<2q")  # place of the reader in the job, its mutant; -1 before the first


@dataclass
class Outcome:
    """What a reader did with its mutants; `failed`: mutant's number -> why, and what was done to it."""

    mutants: int = 0
    loaded: int = 0
    refused: int = 0
    seconds: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)


class Slow(BaseException):
    """Raised in a reader whose time is up; no `except Exception` holds it."""


def fuzz(
    names: Sequence[str],
    mutants: int,
    seed: int,
    out: Path,
    first: int = 0,
    registry: str = "readers",
    seconds: float = SECONDS,
) -> dict[str, Outcome]:
    """The outcome of each reader; files that failed are put into `out`, with a text beside.
    `registry`: the module whose READERS are meant; `seconds` of processor time are allowed a mutant.

    One process reads all, and another goes on where it dies: the mutant that it read then has failed."""
    outcomes = {name: Outcome(mutants) for name in names}
    waiting = [(name, first) for name in names]
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as made:
        folder = Path(made)
        while waiting:
            (folder / "state").write_bytes(STATE.pack(-1, -1))
            job = {"readers": waiting, "end": first + mutants, "seed": seed, "folder": made}
            job |= {"registry": registry, "seconds": seconds}
            done = subprocess.run(
                [sys.executable, __file__, "--job", json.dumps(job)],
                capture_output=True,
                text=True,
                errors="replace",
                env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )
            for line in done.stdout.splitlines():
                told = json.loads(line)
                outcome = outcomes[told["reader"]]
                if "why" in told:
                    _keep(outcome, out, told["reader"], seed, told["number"], told["why"], Path(told["file"]))
                else:
                    outcome.loaded += told["loaded"]
                    outcome.refused += told["refused"]
                    outcome.seconds += told["seconds"]
            if not done.returncode:
                break
            place, number = STATE.unpack((folder / "state").read_bytes())
            if number < 0 or done.returncode > 0:
                raise SystemExit(f"the fuzzer itself failed:\n{done.stderr[-3000:]}")
            name = waiting[place][0]
            why = f"the process ended by signal {-done.returncode}\n{done.stderr[-3000:]}"
            _keep(outcomes[name], out, name, seed, number, why, next((folder / str(place)).glob("mutant*")))
            waiting = [(name, number + 1), *waiting[place + 1 :]]
    return outcomes


def _keep(outcome: Outcome, out: Path, name: str, seed: int, number: int, why: str, file: Path) -> None:
    outcome.failed[number] = why
    if len(outcome.failed) <= MOST_KEPT:
        out.mkdir(parents=True, exist_ok=True)
        kept = out / f"{name.replace(' ', '-')}-{seed}-{number}"
        shutil.copy(file, kept)
        kept.with_name(kept.name + ".txt").write_text(why)


def work(job: dict[str, Any]) -> None:
    """The process that reads: mutants up to `end` for each of `readers`, [name, first mutant]."""
    import warnings

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _time_is_up)
    for ends in (signal.SIGVTALRM, signal.SIGALRM):
        signal.signal(ends, signal.SIG_DFL)
    with Path(job["folder"], "state").open("r+b") as file, mmap.mmap(file.fileno(), STATE.size) as state:
        for place, (name, first) in enumerate(job["readers"]):
            state[:] = STATE.pack(place, -1)
            folder = Path(job["folder"], str(place))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _read_all(job, name, range(first, job["end"]), place, folder, state)


def _read_all(
    job: dict[str, Any], name: str, numbers: range, place: int, folder: Path, state: mmap.mmap
) -> None:
    """Mutants of a reader: prints a line of JSON for each that failed, and one for the counts of the others,
    also after every thousand. `state` gets each number before it is read."""
    from damaged import Mutant

    reader = importlib.import_module(job["registry"]).READERS[name](folder)
    path = folder / f"mutant{reader.suffix}"
    for origin, sample in enumerate(reader.samples):  # as they are, they must load
        path.write_bytes(sample)
        reader.read(path, Mutant(sample, "none", origin))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    counts, kept, began = {"loaded": 0, "refused": 0, "failed": 0}, 0, time.monotonic()
    for number in numbers:
        state[:] = STATE.pack(place, number)
        mutant = reader.mutant(Random(f"{job['seed']} {name} {number}"))
        path.write_bytes(mutant.data)
        kind, why = attempt(reader, path, mutant, job["seconds"])
        counts[kind] += 1
        if kind == "failed":
            file = path if kept == MOST_KEPT else folder / f"failed-{number}"
            if kept < MOST_KEPT:
                file.write_bytes(mutant.data)
                kept += 1
            line = {"reader": name, "number": number, "why": f"{mutant.kind}\n{why}", "file": str(file)}
            print(json.dumps(line), flush=True)
        if number % 1000 == 999 or number == numbers[-1]:
            seconds, began = time.monotonic() - began, time.monotonic()
            print(json.dumps({"reader": name, "seconds": seconds, **counts}), flush=True)
            counts = dict.fromkeys(counts, 0)


def attempt(reader: Any, path: Path, mutant: Any, seconds: float = SECONDS) -> tuple[str, str]:
    """("loaded", ""), ("refused", "") or ("failed", why) of one mutant, within its time."""
    from lotterykit.errors import LotterykitError

    for timer, after in ((signal.ITIMER_PROF, seconds), (signal.ITIMER_VIRTUAL, 3 * seconds)):
        signal.setitimer(timer, after)
    signal.setitimer(signal.ITIMER_REAL, BLOCKED)
    before, outcome = _most_memory(), "loaded"
    try:
        reader.read(path, mutant)
    except KeyboardInterrupt:
        raise
    except LotterykitError as error:
        if why := _bad_refusal(error):
            return "failed", f"{why}\n{traceback.format_exc()[-3000:]}"
        outcome = "refused"
    except BaseException:  # the panic of a library in Rust is no Exception
        return "failed", traceback.format_exc(limit=-8)[-4000:]
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
    if (grown := _most_memory() - before) > GROWTH:
        return "failed", f"{grown >> 20} MiB of memory for a file of {len(mutant.data)} bytes"
    return outcome, ""


def _most_memory() -> int:
    """Bytes that this process had in use at most, so far; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _bad_refusal(error: BaseException) -> str | None:
    """What is wrong with a refusal: more than a line, or it stands for memory that was asked for."""
    text = str(error)
    if "\n" in text or not text or len(text) > LONGEST:
        return f"not one line of at most {LONGEST} characters: {text[:2000]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return "memory beyond the limit was asked for"
        cause = cause.__cause__ or cause.__context__
    return None


def _time_is_up(*_: object) -> None:
    raise Slow("more processor time than a mutant may take")


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as text, a line a reader."""
    lines = [f"{'reader':<14} {'mutants':>8} {'loaded':>7} {'refused':>8} {'failures':>9} {'seconds':>8}"]
    for name, o in outcomes.items():
        lines.append(
            f"{name:<14} {o.mutants:>8} {o.loaded:>7} {o.refused:>8} {len(o.failed):>9} {o.seconds:>8.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    if sys.argv[1:2] == ["--job"]:
        work(json.loads(sys.argv[2]))
        return 0
    from readers import READERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mutants", type=int, default=20_000, help="of each reader")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first mutant, to replay one")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="for files that failed")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    outcomes = fuzz(given.readers, given.mutants, given.seed, given.out, given.first)
    print(table(outcomes))
    for name, outcome in outcomes.items():
        for number, why in list(outcome.failed.items())[:5]:
            print(f"\n{name}: mutant {number} of seed {given.seed}, saved in {given.out}\n{why}")
    return 1 if any(outcome.failed for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
