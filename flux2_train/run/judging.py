"""What the losses of every image alone say about it, by rules that compare it with the other images.

An image is measured before training and now: at the four fixed times with its own caption, and at the two noisy ones,
where captions tell most, with captions borrowed from a few other images, always on the same noise. From these:

* level: the logarithm of its loss now at the two quiet times;
* fall: by how much the logarithm of its loss has fallen, mean of the four times;
* advantage: how far the loss with its own caption lies below that with borrowed ones, as a logarithm, mean of before
  training (what the base model knows of the words) and now (what it has learned of them, the trigger among it).

With median m and spread s = max(1.4826 MAD, 0.1) over the images trained on (for normally distributed values that is
the standard deviation; a tenth is no difference worth a word), the first that fits names an image:

* not learnable: level > m + 3.5 s, at least twice the others' loss, and its fall is no larger than theirs;
* mislabelled: advantage < m / 2, if m is above 0.05 at all. A caption of another picture has as much to say about this
  one as a borrowed one: its advantage is 0, that of right captions about m, and m / 2 is as far from either;
* not learnable: fall < m - 3.5 s and fall < m / 2;
* memorised: fall > m + 3.5 s, and its loss is now below two thirds of what the others' fall would have made of it.

3.5 is the usual bound for outliers on this scale (Iglewicz and Hoaglin 1993). Of fewer than eight images nothing is
said. Held-out images are not judged; where they rose while the others fell, the set as a whole is memorised.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .events import ImageLoss
from .validation import NOISY, TIMES

FEWEST = 8
SPREADS = 3.5
LEAST_SPREAD = 0.1
LEAST_ADVANTAGE = 0.05
SMALLEST_FALL = 0.05
FAR = math.log(2)
FURTHER = math.log(1.5)
MISLABELLED, NOT_LEARNABLE, MEMORISED, NORMAL, HELD_OUT = (
    "mislabelled", "not learnable", "memorised", "", "held out"
)  # fmt: skip
ADVICE = {
    MEMORISED: "seen too often: lower repeats or remove copies",
    NOT_LEARNABLE: "damaged or unlike the others: look at them, take them out",
    MISLABELLED: "other captions fit as well as their own: correct the captions",
}


@dataclass(frozen=True)
class Judged:
    """An image with what its losses say; ``verdict`` is empty where it is like the others.

    ``start`` and ``now`` are mean losses; ``level``, ``fall`` and ``advantage`` as above, the last ``None`` where there
    is no other caption. ``reason`` says what was found and what to do about it.
    """

    image: ImageLoss
    start: float
    now: float
    level: float
    fall: float
    advantage: float | None
    verdict: str = NORMAL
    reason: str = ""


def judge(first: Sequence[ImageLoss], last: Sequence[ImageLoss]) -> list[Judged]:
    """Every image of ``last`` compared with itself in ``first``, of the same data set in the same order."""
    measured = [_measured(a, b) for a, b in zip(first, last, strict=True)]
    trained = [m for m in measured if not m.image.held_out]
    judged = {id(m): replace(m, verdict=HELD_OUT) for m in measured if m.image.held_out}
    if len(trained) >= FEWEST:
        for rule in (_damaged, _mislabelled, _unlearned, _memorised):
            left = [m for m in trained if id(m) not in judged]
            judged |= {id(m): found for m, found in zip(left, rule(left), strict=True) if found.verdict}
    return [judged.get(id(m), m) for m in measured]


def _measured(first: ImageLoss, last: ImageLoss) -> Judged:
    quiet = [loss for time, loss in zip(TIMES, last.with_caption, strict=True) if time not in NOISY]
    fall = statistics.fmean(_log(a, b) for a, b in zip(first.with_caption, last.with_caption, strict=True))
    advantage = statistics.fmean(map(_advantage, (first, last))) if first.others and last.others else None
    start, now = (statistics.fmean(image.with_caption) for image in (first, last))
    return Judged(last, start, now, _log(statistics.fmean(quiet)), fall, advantage)


def _advantage(image: ImageLoss) -> float:
    return _log(statistics.fmean(loss for _, loss in image.others), own_noisy(image))


def own_noisy(image: ImageLoss) -> float:
    """Its loss with its own caption at the times at which it is measured with others'."""
    return statistics.fmean(loss for time, loss in zip(TIMES, image.with_caption, strict=True) if time in NOISY)


def _log(a: float, b: float = 1.0) -> float:
    return math.log(max(a, 1e-12) / max(b, 1e-12))


def _damaged(images: list[Judged]) -> list[Judged]:
    levels, falls = _Spread.of(images, "level"), _Spread.of(images, "fall")

    def is_odd(m: Judged) -> bool:
        return levels.above(m.level) > SPREADS and m.level > levels.median + FAR and m.fall <= falls.median

    return _named(images, is_odd, NOT_LEARNABLE, lambda m: (
        f"Where little noise is left its loss is {math.exp(m.level - levels.median):.1f} times the others': noise, "
        "damage or strong compression. Look at the file; replace it or take it out."
    ))  # fmt: skip


def _mislabelled(images: list[Judged]) -> list[Judged]:
    known = [m.advantage for m in images if m.advantage is not None]
    usual = statistics.median(known) if known else 0.0
    if usual < LEAST_ADVANTAGE:  # the captions of this set tell nothing that could be wrong
        return images
    return _named(images, lambda m: m.advantage is not None and m.advantage < usual / 2, MISLABELLED, _mismatch)


def _mismatch(m: Judged) -> str:
    name, loss = min(m.image.others, key=lambda other: other[1])
    lower = 1 - loss / own_noisy(m.image)
    fits = f"the caption of {name} fits it better, by {lower:.0%} of the loss" if lower >= 0.01 else (
        "captions of other images fit it nearly as well as its own"
    )  # fmt: skip
    return f"Its caption says something else than it shows: {fits}. Compare the two; correct the caption."


def _unlearned(images: list[Judged]) -> list[Judged]:
    falls = _Spread.of(images, "fall")

    def is_odd(m: Judged) -> bool:
        return falls.above(m.fall) < -SPREADS and m.fall < falls.median / 2

    return _named(images, is_odd, NOT_LEARNABLE, lambda m: (
        f"Its loss {_change(m.fall)} while that of the others {_change(falls.median)}: it shows something else than "
        "they do, which its caption does not say. Describe that, or take it out."
    ))  # fmt: skip


def _memorised(images: list[Judged]) -> list[Judged]:
    falls = _Spread.of(images, "fall")

    def is_odd(m: Judged) -> bool:
        return falls.above(m.fall) > SPREADS and m.fall > falls.median + FURTHER

    return _named(images, is_odd, MEMORISED, lambda m: (
        f"Its loss {_change(m.fall)} while that of the others {_change(falls.median)}: it is seen more often than they "
        "are, has copies in the set or is very simple. Lower its repeats or remove the copies."
    ))  # fmt: skip


def _change(fall: float) -> str:
    return f"fell by {1 - math.exp(-fall):.0%}" if fall >= 0 else f"rose by {math.exp(-fall) - 1:.0%}"


def _named(
    images: list[Judged], is_odd: Callable[[Judged], bool], verdict: str, reason: Callable[[Judged], str]
) -> list[Judged]:
    return [replace(m, verdict=verdict, reason=reason(m)) if is_odd(m) else m for m in images]


@dataclass(frozen=True)
class _Spread:
    """Median and spread of values."""

    median: float
    spread: float

    @classmethod
    def of(cls, images: list[Judged], name: str) -> _Spread:
        values = [getattr(m, name) for m in images]
        median = statistics.median(values)
        deviation = statistics.median(abs(v - median) for v in values)
        return cls(median, max(1.4826 * deviation, LEAST_SPREAD))

    def above(self, value: float) -> float:
        """How many spreads a value lies above the median."""
        return (value - self.median) / self.spread


def summary(judged: Sequence[Judged]) -> list[str]:
    """A line for each verdict that some images got, and one where the set as a whole is memorised."""
    lines = []
    for verdict, advice in ADVICE.items():
        names = [j.image.path.name for j in judged if j.verdict == verdict]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"{verdict}: {', '.join(names[:5])}{more} ({advice})")
    out, trained = ([j.fall for j in judged if j.image.held_out == held_out] for held_out in (True, False))
    if out and statistics.median(out) < 0 and statistics.median(trained) > SMALLEST_FALL:
        lines.append("the set as a whole is memorised: the loss of held-out images rose while that of the others fell")
    return lines
