"""How long a call takes: interleaved, so that whatever else the machine does strikes all versions alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from isohub.comparison.inputs import Call
from isohub.comparison.subjects import Subject

__all__ = ["Latency", "SpeedRatio", "measure_speed", "ratio_of"]

_WARM_UP = 2
_LEAST_ROUNDS = 9
_MOST_ROUNDS = 201
_CONFIDENCE = 0.95
# What a machine does by itself from one call to the next is no news.
_NOTABLE = 0.03


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long calls of one version took in its worker.

    Attributes:
        rounds_s: Seconds of each call, in the order of the rounds.
        median_s: The median.
        p10_s: A tenth took less.
        p90_s: A tenth took more.
    """

    rounds_s: list[float]
    median_s: float
    p10_s: float
    p90_s: float


@dataclass(frozen=True, kw_only=True)
class SpeedRatio:
    """How long the other takes, as a multiple of the baseline.

    Attributes:
        median: The median of the ratios of the rounds.
        low: Lower end of the 95 % confidence interval of that median.
        high: Upper end.
        rounds: How many rounds there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def is_notable(self) -> bool:
        """Whether the two differ for certain, and by enough that anybody would care."""
        return self.low > 1 + _NOTABLE or self.high < 1 - _NOTABLE


def measure_speed(subjects: Sequence[Subject], call: Call, budget_s: float) -> dict[str, Latency]:
    """Call all versions in turn, and return the latency of each by its label.

    Args:
        subjects: The versions; those that fail meanwhile are left out.
        call: What they are called with.
        budget_s: How long it may take; at least nine rounds are made.
    """
    times: dict[str, list[float]] = {subject.source.label: [] for subject in subjects}
    began = time.perf_counter()
    for number in range(_WARM_UP + _MOST_ROUNDS):
        # Back and forth, so that none always comes first.
        order = subjects if number % 2 else subjects[::-1]
        for subject in order:
            answer = subject.attempt(subject.call, call, 0)
            if answer is not None and number >= _WARM_UP:
                times[subject.source.label].append(answer[1])
            del answer
        if number + 1 >= _WARM_UP + _LEAST_ROUNDS and time.perf_counter() - began > budget_s:
            break
    return {
        subject.source.label: _latency(times[subject.source.label]) for subject in subjects if subject.error is None
    }


def ratio_of(one: Latency, other: Latency) -> SpeedRatio | None:
    """Return how many times as long the other takes; None where no time passed.

    The interval is that of the order statistics: it supposes nothing of how the times are distributed.
    """
    if not all(one.rounds_s) or not one.rounds_s:
        return None
    ratios = sorted(after / before for before, after in zip(one.rounds_s, other.rounds_s, strict=False))
    count = len(ratios)
    rank = _rank(count)
    return SpeedRatio(median=statistics.median(ratios), low=ratios[rank], high=ratios[count - 1 - rank], rounds=count)


def _rank(count: int) -> int:
    """Return how many of the ordered ratios are cut off at each end."""
    tail, rank = 0.0, 0
    for cut in range(count // 2):
        tail += math.comb(count, cut) / 2**count
        if tail > (1 - _CONFIDENCE) / 2:
            break
        rank = cut
    return rank


def _latency(times: list[float]) -> Latency:
    ordered = sorted(times)

    def quantile(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    return Latency(rounds_s=times, median_s=statistics.median(times), p10_s=quantile(0.1), p90_s=quantile(0.9))
