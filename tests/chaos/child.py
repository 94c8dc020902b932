"""`Child`: a process that meets with trouble, and the lines that it and its workers say."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = 300  # until a child that says and does nothing counts as hanging
ORPHAN_SECONDS = 60  # for workers to notice that their sweep is gone


class Child:
    """`script` with `order`, in a process group of its own."""

    def __init__(self, script: str, order: dict[str, Any], errors: Path) -> None:
        self.order, self.errors = order, errors
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / script), json.dumps(order)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
            )  # fmt: skip
        atexit.register(self._kill_all)  # Ctrl-C of the parent does not reach the group
        self.said: list[tuple[str, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, what = line.decode().strip().partition(" ")
            self.said.append((word, what))

    def all(self, word: str) -> list[str]:
        """What was said under `word`."""
        return [what for said, what in list(self.said) if said == word]

    def wait_for(self, *words: str) -> bool:
        """Whether one of `words` was said before the end."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            if any(said in words for said, _ in list(self.said)):
                return True
            if ended:
                self._reader.join(SECONDS)
                return any(said in words for said, _ in self.said)
            time.sleep(0.005)
        self._kill_all()
        raise TimeoutError(f"said none of {words} in {SECONDS} s: {self.order}\n{self.complaint()}")

    def kill(self, group: bool = False) -> None:
        """kill -9 of the process, or of its workers as well."""
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()

    def kill_worker(self, which: int) -> bool:
        """kill -9 of one of the workers that began a cell; whether it was there to be killed."""
        pids = [pid for pid in {int(what.split()[1]) for what in self.all("begin")} if self._owns(pid)]
        if not pids:
            return False
        os.kill(sorted(pids)[which % len(pids)], signal.SIGKILL)
        return True

    def _owns(self, pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return stat[0] != "Z" and int(stat[1]) == self.process.pid

    def end(self) -> tuple[int, bool]:
        """(exit status, whether its workers ended too): theirs is the other end of the pipe."""
        try:
            code = self.process.wait(SECONDS)
            self._reader.join(ORPHAN_SECONDS)
            return code, not self._reader.is_alive()
        finally:
            self._kill_all()

    def _kill_all(self) -> None:
        """Leave nothing of the group: no worker that outlived its sweep, no sweep that hangs or stands."""
        atexit.unregister(self._kill_all)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def complaint(self) -> str:
        """The end of what it wrote to stderr."""
        return "\n".join(self.errors.read_text(errors="replace").splitlines()[-15:])
