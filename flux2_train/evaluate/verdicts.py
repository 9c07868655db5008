"""Rules that judge an image by its losses, compared with the losses of the other images.

Every image is measured before training and now, always with the same noise: at the four fixed times with its own
caption, and at the two noisy ones, where captions matter most, with captions borrowed from a few other images. From
these losses three numbers are computed:

* unknown: the error of the noise that the predictions imply now, at the two times with little noise: the mean of
  (1 - t)^2 loss. 1 means that the model knows nothing of the noise: noise has variance 1, and the implied noise is
  x_t + (1 - t) v;
* fall: by how much the logarithm of the loss has fallen since before training, mean of the four times;
* advantage: how much lower the loss is with the image's own caption than with borrowed ones, as a logarithm; the mean
  of before training (what the base model knows of the words) and now (what it has learned of them, the trigger too).

m is the median over the images that are trained on, and s = max(1.4826 MAD, 0.1) their spread. (1.4826 MAD is the
standard deviation of normally distributed values; differences below 0.1 are too small to matter.) The first of these
rules that an image meets gives its verdict:

* not learnable: log unknown > m + 3.5 s, unknown is at least twice the median and above 1/2: the model cannot tell
  the picture from noise;
* mislabelled: advantage < m / 2, m is above 0.05, and a borrowed caption does as well as the image's own, to 2 %. A
  wrong caption fits no better than a borrowed one, so its advantage is 0. Right captions have about m, and m / 2 is in
  the middle;
* not learnable: fall < m - 3.5 s and fall < m / 2;
* memorised: fall > m + 3.5 s, and the loss is below two thirds of what it would be with the others' fall.

3.5 is the usual bound for outliers on this scale (Iglewicz and Hoaglin 1993). With fewer than eight images there are no
verdicts. Held-out images are not judged. If their loss rose while that of the others fell, the whole set is memorised.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..events import ImageLoss
from .fixed_noise import NOISY, TIMES

FEWEST = 8  # images that verdicts need
SPREADS = 3.5
LEAST_SPREAD = 0.1
LEAST_ADVANTAGE = 0.05
AS_WELL = 0.02
MOST_UNKNOWN = 0.5
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
    """An image and the verdict on it; ``verdict`` is empty for an image that is like the others.

    ``start`` and ``now`` are mean losses; ``unknown``, ``fall`` and ``advantage`` are as above. Without other captions
    ``advantage`` is ``None``. ``nearest`` is the advantage over the best borrowed caption, the lower of before
    training and now. ``reason`` tells the user why, and what to do.
    """

    image: ImageLoss
    start: float
    now: float
    unknown: float
    fall: float
    advantage: float | None
    nearest: float = 0.0
    verdict: str = NORMAL
    reason: str = ""


def judge(first: Sequence[ImageLoss], last: Sequence[ImageLoss]) -> list[Judged]:
    """A verdict on every image of ``last``; ``first`` holds the same images, in the same order, before training."""
    measured = [_measured(a, b) for a, b in zip(first, last, strict=True)]
    trained = [m for m in measured if not m.image.held_out]
    judged = {id(m): replace(m, verdict=HELD_OUT) for m in measured if m.image.held_out}
    if len(trained) >= FEWEST:
        for rule in (_damaged, _mislabelled, _unlearned, _memorised):
            rest = [m for m in trained if id(m) not in judged]
            judged |= {id(m): result for m, result in zip(rest, rule(rest), strict=True) if result.verdict}
    return [judged.get(id(m), m) for m in measured]


def _measured(first: ImageLoss, last: ImageLoss) -> Judged:
    own = list(zip(TIMES, last.with_caption, strict=True))
    unknown = statistics.fmean((1 - time) ** 2 * loss for time, loss in own if time not in NOISY)
    fall = statistics.fmean(_log(a, b) for a, b in zip(first.with_caption, last.with_caption, strict=True))
    start, now = (statistics.fmean(image.with_caption) for image in (first, last))
    if not (first.others and last.others):
        return Judged(last, start, now, unknown, fall, None)
    advantages = [[_log(loss, own_noisy(image)) for _, loss in image.others] for image in (first, last)]
    advantage = statistics.fmean(_log(_mean_borrowed(image), own_noisy(image)) for image in (first, last))
    return Judged(last, start, now, unknown, fall, advantage, min(map(min, advantages)))


def _mean_borrowed(image: ImageLoss) -> float:
    return statistics.fmean(loss for _, loss in image.others)


def own_noisy(image: ImageLoss) -> float:
    """The image's mean loss with its own caption at the times NOISY, where borrowed captions are measured."""
    return statistics.fmean(loss for time, loss in zip(TIMES, image.with_caption, strict=True) if time in NOISY)


def _log(a: float, b: float = 1.0) -> float:
    return math.log(max(a, 1e-12) / max(b, 1e-12))


def _damaged(images: list[Judged]) -> list[Judged]:
    usual = _Spread.of([_log(m.unknown) for m in images])

    def is_odd(m: Judged) -> bool:
        far = max(usual.median + FAR, math.log(MOST_UNKNOWN))
        return usual.above(_log(m.unknown)) > SPREADS and _log(m.unknown) > far

    return _with_verdict(images, is_odd, NOT_LEARNABLE, lambda m: (
        f"Where little noise is left its loss is {m.unknown / math.exp(usual.median):.1f} times the others': noise, "
        "damage or strong compression. Look at the file; replace it or take it out."
    ))  # fmt: skip


def _mislabelled(images: list[Judged]) -> list[Judged]:
    known = [m.advantage for m in images if m.advantage is not None]
    usual = statistics.median(known) if known else 0.0

    def is_odd(m: Judged) -> bool:
        return m.advantage is not None and m.advantage < usual / 2 and m.nearest < AS_WELL

    # with a lower median the captions of this set hardly matter, so none can be called wrong
    return images if usual < LEAST_ADVANTAGE else _with_verdict(images, is_odd, MISLABELLED, _mismatch)


def _mismatch(m: Judged) -> str:
    name, loss = min(m.image.others, key=lambda other: other[1])
    lower = 1 - loss / own_noisy(m.image)
    fits = f"the caption of {name} fits it better, by {lower:.0%} of the loss" if lower >= 0.01 else (
        "captions of other images fit it nearly as well as its own"
    )  # fmt: skip
    return f"Its caption says something else than it shows: {fits}. Compare the two; correct the caption."


def _unlearned(images: list[Judged]) -> list[Judged]:
    falls = _Spread.of([m.fall for m in images])

    def is_odd(m: Judged) -> bool:
        return falls.above(m.fall) < -SPREADS and m.fall < falls.median / 2

    return _with_verdict(images, is_odd, NOT_LEARNABLE, lambda m: (
        f"Its loss {_change(m.fall)} while that of the others {_change(falls.median)}: it shows something else than "
        "they do, which its caption does not say. Describe that, or take it out."
    ))  # fmt: skip


def _memorised(images: list[Judged]) -> list[Judged]:
    falls = _Spread.of([m.fall for m in images])

    def is_odd(m: Judged) -> bool:
        return falls.above(m.fall) > SPREADS and m.fall > falls.median + FURTHER

    return _with_verdict(images, is_odd, MEMORISED, lambda m: (
        f"Its loss {_change(m.fall)} while that of the others {_change(falls.median)}: it is seen more often than they "
        "are, has copies in the set or is very simple. Lower its repeats or remove the copies."
    ))  # fmt: skip


def _change(fall: float) -> str:
    return f"fell by {1 - math.exp(-fall):.0%}" if fall >= 0 else f"rose by {math.exp(-fall) - 1:.0%}"


def _with_verdict(
    images: list[Judged], is_odd: Callable[[Judged], bool], verdict: str, reason: Callable[[Judged], str]
) -> list[Judged]:
    return [replace(m, verdict=verdict, reason=reason(m)) if is_odd(m) else m for m in images]


@dataclass(frozen=True)
class _Spread:
    """The median of values, and their spread s as in this module's first lines."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> _Spread:
        median = statistics.median(values)
        deviation = statistics.median(abs(v - median) for v in values)
        return cls(median, max(1.4826 * deviation, LEAST_SPREAD))

    def above(self, value: float) -> float:
        """How many spreads a value lies above the median."""
        return (value - self.median) / self.spread


def summary(judged: Sequence[Judged]) -> list[str]:
    """One line for each verdict that images got, and one if the set as a whole is memorised."""
    lines = []
    for verdict, advice in ADVICE.items():
        names = [j.image.path.name for j in judged if j.verdict == verdict]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"{verdict}: {', '.join(names[:5])}{more} ({advice})")
    held_out_falls, falls = ([j.fall for j in judged if j.image.held_out == held_out] for held_out in (True, False))
    if held_out_falls and statistics.median(held_out_falls) < 0 and statistics.median(falls) > SMALLEST_FALL:
        lines.append("the set as a whole is memorised: the loss of held-out images rose while that of the others fell")
    return lines
