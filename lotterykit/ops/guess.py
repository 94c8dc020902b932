"""`Guess`: where the threshold of a selection that is repeated over slowly changing scores will be found."""

from __future__ import annotations

import math

RANKS = 2**32  # tie ranks lie below it
FIRST = 0.05  # how far the second threshold may be from the first, relative to it
LEAST = 1e-3  # narrower than this no bracket gets: rounding and ties move a threshold too
FIRST_RANKS, LEAST_RANKS = RANKS // 32, RANKS // 1024


class Guess:
    """The thresholds of a series of selections, from which the next is expected.

    Give the same object to every `topk_mask` or `score_thresholds` of the series, and to no other. Masks are
    the same with and without it. A good guess saves the sample that brackets the threshold and leaves fewer
    candidates; a bad one costs a pass over the scores. Only the cpu backend reads it.

    >>> scores, guess = [torch.rand(50_000)], Guess()
    >>> for density in (0.5, 0.49, 0.48):
    ...     masks = topk_mask(scores, density=density, guess=guess)
    """

    def __init__(self) -> None:
        # Each None, or (last, expected, how far that may be off), of the scores and of the ranks among ties.
        self._score: tuple[float, float, float] | None = None
        self._rank: tuple[int, int, int] | None = None

    def bracket(self) -> tuple[float, float, int, int] | None:
        """The lowest and the highest score expected, and the tie ranks there (all that tie: 2**32 - 1, 0)."""
        if self._score is None:
            return None
        if self._rank is not None:
            last, (_, expected, margin) = self._score[0], self._rank
            return last, last, min(expected + margin, RANKS - 1), max(expected - margin, 0)
        _, centre, width = self._score
        return centre - width, centre + width, RANKS - 1, 0

    def learn(self, threshold: float, rank: int) -> None:
        """Take up the threshold of a selection: T and H of `topk_mask`."""
        if not math.isfinite(threshold):
            self._score = self._rank = None
            return
        before, ranks = self._score, self._rank
        least = LEAST * abs(threshold)
        if before is None:
            self._score = threshold, threshold, FIRST * abs(threshold)
        else:
            last, expected, margin = before
            off = max(3 * abs(expected - threshold), margin / 2)  # one lucky guess says little
            self._score = threshold, 2 * threshold - last, off + least
        # Inside a tie the threshold stands still, and the rank moves.
        stays = threshold == 0 if before is None else threshold == before[0]
        if not stays:
            self._rank = None
        elif ranks is None:
            self._rank = rank, rank, FIRST_RANKS
        else:
            off_ranks = max(3 * abs(ranks[1] - rank), ranks[2] // 2)
            self._rank = rank, 2 * rank - ranks[0], off_ranks + LEAST_RANKS
