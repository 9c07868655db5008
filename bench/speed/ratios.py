"""How much slower: the median of the ratios of pairs measured one after the other, with its interval."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median of pairwise ratios and its 95 % interval, from ``pairs`` pairs."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.pairs} pairs"


def ratio(ours: list[float], theirs: list[float], resamples: int = 10000) -> Ratio:
    """Of ``ours[i] / theirs[i]``; the interval is the percentile bootstrap's over pairs (Efron 1979), seeded."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(resamples))
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return Ratio(statistics.median(ratios), low, high, len(ratios))
