"""What the loss of every image alone says about it, by rules that compare it with the other images.

With L the mean error of an image over the four fixed times, each at fixed noise:

* fall = 1 - L(now) / L(start), both with the image's caption: how much was learned of it;
* gain = 1 - L(now) / L(now, without caption): how much its caption tells the trained model about it.

m and s are median and spread of these over the images that are trained on, s = max(1.4826 MAD, 0.02): for normally
distributed values 1.4826 MAD is the standard deviation; below 2 % a difference is none. In this order:

* mislabelled: gain < m - 3 s and gain < m / 2 - the others' captions help and this one does not;
* not learnable: fall < m - 3 s and fall < m / 2 - the others' loss fell and this one's did not;
* memorised: fall > m + 3 s and fall > 2 m - its loss fell far more than the others'.

Of fewer than five images nothing is said. Held-out images are not judged; where their fall is below zero while the
median fall of the others is above SMALLEST_FALL, the set as a whole is memorised.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .events import ImageLoss

FEWEST = 5
SPREADS = 3.0
LEAST_SPREAD = 0.02
SMALLEST_FALL = 0.05
MISLABELLED, NOT_LEARNABLE, MEMORISED, NORMAL, HELD_OUT = (
    "mislabelled", "not learnable", "memorised", "", "held out"
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """An image with what its losses say; ``verdict`` is empty where it is like the others."""

    image: ImageLoss
    start: float
    now: float
    fall: float
    gain: float
    verdict: str = NORMAL


def judge(first: Sequence[ImageLoss], last: Sequence[ImageLoss]) -> list[Judged]:
    """Every image of ``last`` compared with itself in ``first``, of the same data set in the same order."""
    measured = [_measured(a, b) for a, b in zip(first, last, strict=True)]
    trained = [m for m in measured if not m.image.held_out]
    if len(trained) < FEWEST:
        return measured
    falls, gains = _Spread.of([m.fall for m in trained]), _Spread.of([m.gain for m in trained])
    return [_with(m, HELD_OUT if m.image.held_out else _verdict(m, falls, gains)) for m in measured]


def _measured(first: ImageLoss, last: ImageLoss) -> Judged:
    start, now, without = (statistics.fmean(v) for v in (first.with_caption, last.with_caption, last.without))
    return Judged(last, start, now, _part(now, start), _part(now, without))


def _part(now: float, before: float) -> float:
    return 1 - now / before if before else 0.0


def _with(measured: Judged, verdict: str) -> Judged:
    return Judged(measured.image, measured.start, measured.now, measured.fall, measured.gain, verdict)


def _verdict(measured: Judged, falls: _Spread, gains: _Spread) -> str:
    if gains.is_far_below(measured.gain):
        return MISLABELLED
    if falls.is_far_below(measured.fall):
        return NOT_LEARNABLE
    return MEMORISED if falls.is_far_above(measured.fall) else NORMAL


@dataclass(frozen=True)
class _Spread:
    """Median and spread of values."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> _Spread:
        median = statistics.median(values)
        deviation = statistics.median(abs(v - median) for v in values)
        return cls(median, max(1.4826 * deviation, LEAST_SPREAD))

    def is_far_below(self, value: float) -> bool:
        return value < min(self.median - SPREADS * self.spread, self.median / 2)

    def is_far_above(self, value: float) -> bool:
        return value > max(self.median + SPREADS * self.spread, 2 * self.median)


def summary(judged: Sequence[Judged]) -> list[str]:
    """A line for each verdict that some images got, and one where the set as a whole is memorised."""
    lines = []
    for verdict in (MEMORISED, NOT_LEARNABLE, MISLABELLED):
        names = [j.image.path.name for j in judged if j.verdict == verdict]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"{verdict}: {', '.join(names[:5])}{more}")
    out, trained = ([j.fall for j in judged if j.image.held_out == held_out] for held_out in (True, False))
    if out and statistics.median(out) < 0 and statistics.median(trained) > SMALLEST_FALL:
        lines.append("the set as a whole is memorised: the loss of held-out images rose while that of the others fell")
    return lines
