"""Schedules: the density after round r of R, from the density a network starts with to the one asked for."""

from __future__ import annotations

from collections.abc import Callable

from lotterykit.errors import ArgumentError, check_density, unknown_name


def exponential(start: float, end: float, progress: float) -> float:
    """start (end / start)^(r/R): from 1, `end^(r/R)`; each round removes the same share of what remains."""
    return start * (end / start) ** progress


def linear(start: float, end: float, progress: float) -> float:
    """start + (end - start) r/R."""
    return start + (end - start) * progress


def cubic(start: float, end: float, progress: float) -> float:
    """end + (start - end) (1 - r/R)^3 (Zhu & Gupta 2017): fast at first, slow at the end."""
    return end + (start - end) * (1.0 - progress) ** 3


def density_after(schedule: str, *, end: float, round: int, rounds: int, start: float = 1.0) -> float:
    """The density after round `round` (1..`rounds`) of `schedule`; exactly `end` after the last.

    >>> density_after("exponential", end=0.01, round=1, rounds=2)
    0.1
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if not 1 <= round <= rounds:
        raise ArgumentError(f"round must lie in 1..{rounds}, got {round}")
    check_density(end)
    return end if round == rounds else SCHEDULES[schedule](start, end, round / rounds)


def after_levels(prune_fraction: float, levels: int) -> float:
    """(1 - p)^levels: the density after `levels` rounds that each remove the share p of what remains (P4).

    The exponential schedule to `after_levels(p, n)` in n rounds passes through (1 - p)^r at each round r.
    """
    if not 0.0 < prune_fraction < 1.0:
        raise ArgumentError(f"prune_fraction is a share of what remains, in (0, 1), got {prune_fraction}")
    return (1.0 - prune_fraction) ** levels


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "exponential": exponential,
    "linear": linear,
    "cubic": cubic,
}
