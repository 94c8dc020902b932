"""`SearchTrial`: one search from its start to its ticket, through kills; what it lost or got wrong."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors
from child import Child

from lotterykit.experiments.ticket import Ticket

ENDS = {0, -signal.SIGKILL, -signal.SIGXFSZ}


class SearchTrial:
    """A search with its journal under `folder` and the tally of what happens to it."""

    def __init__(self, folder: Path, kind: str, tally: Counter[str]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.kind, self.tally = folder, kind, tally
        self.out = folder / "ticket"
        self.steps: dict[int, tuple[int, bool]] = {}  # training -> its last step in the journal, finished
        self.rounds = 0

    def start(self, **trouble: Any) -> Child:
        """The search goes on from its journal and meets with `trouble`."""
        self.rounds += 1
        order = {"folder": str(self.folder / "journal"), "out": str(self.out), "kind": self.kind, **trouble}
        return Child("searching.py", order, self.folder / f"stderr.{self.rounds}")

    def finish(self, child: Child) -> int:
        """The end of `child`, and a look at what it left."""
        code, _ = child.end()
        if code not in ENDS:
            self._wrong("broken", f"exit status {code}: {child.order}\n{child.complaint()}")
        for number in map(int, child.all("begin")):
            if self.steps.get(number, (0, False))[1]:
                self._wrong("duplicated", f"training {number} was done, and began again: {child.order}")
        now = self._journal()
        for number, (step, _) in self.steps.items():
            if now.get(number, (0, False))[0] < step:
                self._wrong("lost", f"training {number} had come to step {step}: {child.order}")
        self.steps = now
        return code

    def _journal(self) -> dict[int, tuple[int, bool]]:
        found = {}
        for path in (self.folder / "journal").glob("*/[0-9]*.safetensors"):
            with safetensors.safe_open(str(path), framework="pt") as file:
                content = json.loads(file.metadata()["content"])
            found[int(path.stem)] = (content["at"], content["finished"])
        return found

    def random_kill(self, rng: random.Random, seconds: float) -> int:
        """kill -9, up to `seconds` after the search begins; 0 where it had ended."""
        child = self.start()
        if child.wait_for("ready"):
            time.sleep(rng.uniform(0, seconds))
            if child.process.poll() is None:
                child.kill()
        return int(self.finish(child) == -signal.SIGKILL)

    def kill_at(self, point: str, nth: int) -> int:
        """kill -9 at a point; 0 where the search did not come by."""
        return int(self.finish(self.start(at=point, nth=nth)) == -signal.SIGKILL)

    def kill_within_a_write(self, size: int) -> int:
        """The kernel kills the search within the write that would grow a file beyond `size` bytes."""
        return int(self.finish(self.start(bytes=size)) == -signal.SIGXFSZ)

    def end(self, expected: str) -> None:
        """The search without trouble to its ticket, whose digest must be `expected`."""
        if (code := self.finish(self.start())) != 0:
            self._wrong("broken", f"the last search ended with status {code}")
        self.tally["searches"] += 1
        if Ticket.load(self.out).digest() != expected:
            self._wrong("differing", "the ticket is another than undisturbed")

    def _wrong(self, what: str, why: str) -> None:
        self.tally[what] += 1
        print(f"{what}: {self.folder}: {why}", flush=True)
