"""compile 'auto': whether blocks run compiled is measured on a run's own steps, once, and kept for its resumes.

Some steps run without compiled blocks and are timed. If enough steps are left for compiling to save more time than it
takes, blocks are compiled, and as many steps are timed again. The faster way is used for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import median

from ..names import counted

FEW = 5  # steps, enough for a median
HOPED = 0.3  # of a step's time that compiling saves at best
TAKES = 60.0  # seconds that compiling takes, before it is measured
LEAST = 0.02  # of a step's time: medians of a few steps differ by that much by chance
LONGEST = 100  # steps; if none of their kinds has come often enough by then, they are compared as one kind

Times = dict[Hashable, list[float]]  # seconds of steps by their kind, in the order in which they were done


class Trial:
    """Times steps without compiled blocks, then with them (``trying``), then has ``decided`` for one of the two.

    ``why`` says it in figures. ``short`` is the number of steps of a run that was found too short for a trial: if the
    run is made longer, that is asked again. A ``closed`` trial is not begun, and nothing is decided.
    """

    def __init__(self):
        self.decided: bool | None = None
        self.why, self.short = "", 0
        self.trying = self.closed = False
        self.warm = False  # whether a step was done: the first one also builds things
        self.plain: Times = {}
        self.compiled: Times = {}

    def add(self, kind: Hashable, seconds: float, left: int, total: int) -> bool:
        """Take note of a step after which ``left`` of ``total`` are left. True if ``trying`` or ``decided`` changes."""
        if self.decided is False and 0 < self.short < total:
            self.decided, self.short = None, 0
        if self.closed or self.decided is not None:
            return False
        if not self.warm:
            self.warm = True
            return False
        (self.compiled if self.trying else self.plain).setdefault(kind, []).append(seconds)
        return self._judge(left) if self.trying else self._try(left, total)

    def decide(self, compiled: bool, why: str) -> None:
        """Use compiled blocks for the rest of the run and its resumes, or do not."""
        self.decided, self.why, self.trying = compiled, why, False

    def _try(self, left: int, total: int) -> bool:
        times = _all(self.plain)
        if len(times) < LONGEST and max(map(len, self.plain.values())) < FEW:
            return False
        usual = median(times)
        self.trying = HOPED * usual * left > TAKES
        if not self.trying:
            self.decide(False, f"{counted(left, 'step')} of {usual:.3g} s would not win back the time of compiling")
            self.short = total
        return True

    def _judge(self, left: int) -> bool:
        found = self._compared()
        if found is None:
            return False
        before, after = found
        saved = before - after
        if saved < LEAST * before:
            self.decide(False, f"compiled steps take {after:.3g} s and others {before:.3g} s")
            return True
        spent = self._compiling()
        won = counted(max(1, round(spent / saved)), "step wins", "steps win")
        self.decide(True, f"{after:.3g} s per step, not {before:.3g} s; {won} back the {spent:.3g} s of compiling")
        return True

    def _compared(self) -> tuple[float, float] | None:
        """Seconds of a step without and with compiled blocks, over the kinds with enough of both; None if none has."""
        plain, compiled = self.plain, {kind: times[1:] for kind, times in self.compiled.items()}
        both = [kind for kind in plain if min(len(plain[kind]), len(compiled.get(kind, ()))) >= FEW]
        if not both and len(_all(compiled)) >= LONGEST:
            plain, compiled, both = {None: _all(plain)}, {None: _all(compiled)}, [None]
        if not both:
            return None
        weights = [len(plain[kind]) for kind in both]
        return _mean([median(plain[kind]) for kind in both], weights), _mean(
            [median(compiled[kind]) for kind in both], weights
        )

    def _compiling(self) -> float:
        """Seconds of the steps that compiled, beyond what such steps take: the first of each kind."""
        extra = (times[0] - median(times[1:] or times) for times in self.compiled.values())
        return max(0.0, sum(extra))

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes. Times are no part of it: another computer may go on."""
        return {"compiled": self.decided, "why": self.why, "short": self.short}

    def load_state_dict(self, state: dict) -> None:
        """Take over what a run has decided. A state in which nothing is decided changes nothing."""
        if state["compiled"] is not None:
            self.decide(bool(state["compiled"]), state["why"])
            self.short = state["short"]


def _all(times: Times) -> list[float]:
    return [seconds for each in times.values() for seconds in each]


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
