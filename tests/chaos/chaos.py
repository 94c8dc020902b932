"""Kills sweeps and searches, fills their disks, stops them and wakes them up: what `make chaos` promises.

    python tests/chaos/chaos.py [--kills N] [--seed N] [--folder FOLDER]

1. Sweeps of 3 workers are killed (kill -9): at points of the code that writes the store, line by line and
   statement by statement; by the kernel within a write, which then is half done; at random moments, the
   sweep, it with its workers, or workers alone. Some of these sweeps train networks.
2. Disks are full and writes fail: the sweep must end with one line, and go on when there is room again.
3. Zombies: a sweep is stopped, another takes its store over, the first one wakes up and must not write.
4. Searches by iterative magnitude pruning are killed within their trainings.

lost: rows (steps of a training) that were kept and are gone, or cells that have none in the end.
duplicated: cells (trainings) that ran although they were done, rows that are there twice.
differing: rows (tickets) unlike those of an undisturbed run, times aside.
late: rows that a replaced sweep wrote. orphans: workers that outlive their sweep.
broken: damaged stores, and ends that were not clean.
A kill is a process's, not the machine's: what a power cut does to a disk's cache is not tried.
Exits with 1 where any of them is not 0.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from child import Child
from journals import SearchTrial
from sweeping import sweep_of
from sweeps import Trial

from lotterykit.experiments.ticket import Ticket

MOST_TRIES = 5  # of one kind of trouble without a kill, until a fresh store is taken
ROUNDS = 8  # troubles a store meets with before it is brought to its end
WRONG = ("lost", "duplicated", "differing", "late", "orphans", "broken")


class Chaos:
    """The troubles of a run, drawn from `seed`; `folder` holds what they leave."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.tally = folder, random.Random(seed), Counter[str]()
        self._undisturbed: dict[str, dict[str, dict]] = {}
        self._trials = 0

    def sweeps(self, name: str, kind: str, count: int, trouble: Callable[[Trial], int]) -> None:
        """`count` troubles of a kind, counted as `name`, on stores that are then brought to their ends."""
        expected, found, began = self._expected(kind), 0, time.monotonic()
        while found < count:
            trial, tries = Trial(self._place(), kind, expected, self.tally), 0
            for _ in range(ROUNDS):
                met = trouble(trial)
                found, tries = found + met, 0 if met else tries + 1
                if found >= count or tries == MOST_TRIES or trial.kept == expected.keys():
                    break
            trial.end()
            if not any(self.tally[what] for what in WRONG):
                shutil.rmtree(trial.folder)
        self.tally[name] += found
        print(f"{found} {name}, {time.monotonic() - began:.0f} s", flush=True)

    def searches(self, kind: str, count: int) -> None:
        """`count` kills of searches, a third each at random, at points and within writes."""
        expected, points = self._undisturbed_search(kind)
        found, began = 0, time.monotonic()
        while found < count:
            trial = SearchTrial(self._place(), kind, self.tally)
            for _ in range(min(ROUNDS, count - found)):
                found += self.rng.choice((self._search_random, self._search_point, self._search_write))(
                    trial, points
                )
                if trial.out.exists():
                    break
            trial.end(expected)
        self.tally["kills of searches"] += found
        print(f"{found} kills of searches ({kind}), {time.monotonic() - began:.0f} s", flush=True)

    def _search_random(self, trial: SearchTrial, points: dict[str, int]) -> int:
        return trial.random_kill(self.rng, 3.0)

    def _search_point(self, trial: SearchTrial, points: dict[str, int]) -> int:
        point = self.rng.choice(list(points))
        return trial.kill_at(point, self.rng.randint(1, max(1, points[point] // 2)))

    def _search_write(self, trial: SearchTrial, points: dict[str, int]) -> int:
        return trial.kill_within_a_write(self.rng.randint(1, 12_000))

    def points(self) -> dict[str, int]:
        """The points of an undisturbed sweep in the order of its way, and how often it comes by each."""
        note = self.folder / "points"
        self._expected("quick", note=str(note))
        return json.loads(note.read_text())

    def _undisturbed_search(self, kind: str) -> tuple[str, dict[str, int]]:
        place = self._place()
        place.mkdir()
        order = {"folder": str(place / "journal"), "out": str(place / "ticket"), "kind": kind}
        child = Child("searching.py", {**order, "note": str(place / "points")}, place / "stderr")
        if child.end()[0] != 0:
            raise SystemExit(f"an undisturbed search fails:\n{child.complaint()}")
        return Ticket.load(place / "ticket").digest(), json.loads((place / "points").read_text())

    def _expected(self, kind: str, **order: str) -> dict[str, dict]:
        """The rows of an undisturbed sweep, by key."""
        if kind not in self._undisturbed or order:
            trial = Trial(self._place(), kind, {}, self.tally)
            trial.finish(trial.start(**order))
            self._undisturbed[kind] = trial.rows()
            if self._undisturbed[kind].keys() != {cell.key() for cell in sweep_of(kind).cells}:
                raise SystemExit("an undisturbed sweep does not end")
        return self._undisturbed[kind]

    def _place(self) -> Path:
        self._trials += 1
        return self.folder / f"{self._trials:03}"


def run(chaos: Chaos, kills: int) -> None:
    """All troubles, so that sweeps are killed `kills` times and the rest in proportion."""
    rng, rarer = chaos.rng, -(-kills // 20)
    at_points, within = -(-kills // 2), -(-kills // 8)
    kill_at_points(chaos, at_points)
    chaos.sweeps(
        "kills within writes", "quick", within, lambda trial: trial.kill_within_a_write(write_size(rng))
    )
    chaos.sweeps("random kills, training", "real", rarer, lambda trial: trial.random_kill(rng, 0.4))
    left = max(0, kills - at_points - within - rarer)
    chaos.sweeps("random kills", "quick", left, lambda trial: trial.random_kill(rng, 0.6))
    fail(chaos, rarer)
    wake_zombies(chaos, rarer)
    for kind in ("replicas", "modules"):
        chaos.searches(kind, rarer)


def write_size(rng: random.Random) -> int:
    """Bytes at which a write ends: a draft of a store has fewer, a log at the end of a sweep more."""
    return rng.randint(8192, 300_000)


def kill_at_points(chaos: Chaos, count: int) -> None:
    """Kills at points: each once before any comes again, at its first time or any other."""
    points, order = chaos.points(), list[str]()

    def trouble(trial: Trial) -> int:
        if not order:
            order.extend(points)
            chaos.rng.shuffle(order)
        name = order.pop()
        return trial.kill_at(name, chaos.rng.choice((1, chaos.rng.randint(1, points[name]))))

    chaos.sweeps("kills at points", "quick", count, trouble)


def fail(chaos: Chaos, count: int) -> None:
    """Full disks and I/O errors, `count` each."""
    rng = chaos.rng
    chaos.sweeps("disks full", "quick", count, lambda trial: trial.fail(pages=rng.randint(0, 20)))
    chaos.sweeps(
        "I/O errors", "quick", count, lambda trial: trial.fail(bytes=write_size(rng) // 2, deadly=False)
    )


def wake_zombies(chaos: Chaos, count: int) -> None:
    """Zombies that were stopped where a sweep holds the lock of its store."""
    held = held_points(list(chaos.points()))
    chaos.sweeps(
        "zombies", "quick", count, lambda trial: trial.zombie(chaos.rng.choice(held), chaos.rng.randint(1, 5))
    )


def held_points(names: list[str]) -> list[str]:
    """Those of the points `names`, in the order of the way, at which a sweep holds the lock of its store."""
    begin = names.index("sql:BEGIN IMMEDIATE")
    end = next(i for i, name in enumerate(names) if i > begin and name.startswith("lock.py"))
    return names[begin:end]


def table(tally: Counter[str]) -> str:
    """What was done, and what came of it."""
    kinds = ("kills at points", "kills within writes", "random kills", "random kills, training")
    lines = [f"kills = {sum(tally[kind] for kind in kinds)} of sweeps with 3 workers, {tally['cells']} cells"]
    lines += [f"    {tally[kind]:5} {kind}" for kind in kinds]
    lines += [f"{name} = {tally[name]}" for name in ("disks full", "I/O errors")]
    lines += [f"zombies = {tally['zombies']}, {tally['replaced']} of them replaced"]
    lines += [f"kills of searches = {tally['kills of searches']}, {tally['searches']} tickets"]
    return "\n".join([*lines, *(f"{what} = {tally[what]}" for what in WRONG)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of sweeps; the rest in proportion")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--folder", type=Path, help="for what is left; a temporary one by default")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {given.seed}, {folder}", flush=True)
    chaos = Chaos(folder, given.seed)
    run(chaos, given.kills)
    print(table(chaos.tally))
    wrong = any(chaos.tally[what] for what in WRONG)
    if given.folder is None and not wrong:
        shutil.rmtree(folder)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
