"""Timings: medians of many repeats, CUDA events on a GPU, inputs rotated so that no cache keeps them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

QUEUE = 40  # calls enqueued at once
SLEEP_CYCLES = 40_000_000  # about 20 ms, longer than it takes to enqueue them
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TURN = 5  # timed calls before the next function's turn


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: median, 20th and 80th percentile, and the number of repeats."""

    median: float
    p20: float
    p80: float
    repeats: int

    def each_of(self, steps: int) -> Timing:
        """The time of one of `steps` equal steps in a call."""
        return Timing(self.median / steps, self.p20 / steps, self.p80 / steps, self.repeats)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measure(
    function: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]] = ((),),
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    most: int = 200,
    queued: bool = False,
) -> Timing:
    """Time `function(*inputs[i])`, the inputs taken in turn, for about `seconds`, 5 to `most` repeats.

    On "cuda" each call stands between two events, else a host clock is used. `queued` holds the GPU back
    until the calls are enqueued, so that the events see device time alone and not the host's launch work.
    Give input sets that together exceed the last cache (`rotations`) or the cache is what you measure.
    """
    turn = itertools.cycle(inputs)
    for _ in range(2):  # the first call compiles and allocates: only the second tells how long one takes
        started = time.perf_counter()
        function(*next(turn))
        if device == "cuda":
            torch.cuda.synchronize()
        one = max(time.perf_counter() - started, 1e-7)
    _run(function, turn, device, max(1, min(10, int(0.2 * seconds / one))), queued)
    repeats = max(5, min(most, int(seconds / one)))
    samples: list[float] = []
    while len(samples) < repeats:  # a GPU's queue holds about a thousand launches
        samples += _run(function, turn, device, min(QUEUE, repeats - len(samples)), queued)
    return _timing(samples)


def alternate(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: str = "cpu",
    seconds: float = float("inf"),
    around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    clock: str = "wall",
) -> dict[str, Timing]:
    """Time functions against each other: they take turns of one untimed and `TURN` timed calls until each has
    `repeats`, so that other work on the machine falls on all alike.

    One that has taken `seconds` gets no further turn once it has 3 samples. `around(name)` is open, untimed,
    during the turns of `name`. `clock` "cpu" counts the time that the process computed, on all its threads
    together: on one thread what a machine without other work would take, however long others hold its cores.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    waiting = dict(functions)
    while waiting:
        for name, function in list(waiting.items()):
            taken = samples[name]
            with around(name):
                _run(function, itertools.repeat(()), device, 1, False, clock)
                for _ in range(TURN):
                    taken += _run(function, itertools.repeat(()), device, 1, False, clock)
                    if len(taken) >= repeats or (len(taken) >= 3 and sum(taken) >= 1e6 * seconds):
                        del waiting[name]
                        break
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(samples: list[float]) -> Timing:
    ordered = sorted(samples)
    return Timing(
        median=_quantile(ordered, 0.5),
        p20=_quantile(ordered, 0.2),
        p80=_quantile(ordered, 0.8),
        repeats=len(ordered),
    )


def rotations(bytes_per_set: int, cache_bytes: int, *, most: int = 16) -> int:
    """How many input sets of `bytes_per_set` are needed to exceed three times `cache_bytes`; at least 2."""
    return max(2, min(most, 1 + 3 * cache_bytes // max(1, bytes_per_set)))


def _run(
    function: Callable[..., Any],
    turn: Iterator[tuple[Any, ...]],
    device: str,
    repeats: int,
    queued: bool,
    clock: str = "wall",
) -> list[float]:
    if device != "cuda":
        now, samples = CLOCKS[clock], []
        for _ in range(repeats):
            arguments = next(turn)
            started = now()
            function(*arguments)
            samples.append((now() - started) * 1e6)
        return samples
    if queued:
        torch.cuda._sleep(SLEEP_CYCLES)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats * 2)]
    for before, after in zip(events[::2], events[1::2], strict=True):
        arguments = next(turn)
        before.record()
        function(*arguments)
        after.record()
    torch.cuda.synchronize()
    return [b.elapsed_time(a) * 1e3 for b, a in zip(events[::2], events[1::2], strict=True)]


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
