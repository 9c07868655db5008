"""Which moment of a run is the best one, by what is measured without a scorer: validation loss and selectivity.

The score of a step is what its LoRA has gained, less what of it leaks:

    score = (L_0 - L) (1 - share^2),    share = min(leaked / taught, 0.9)

L is the validation loss at that step and L_0 the one before the first step. The share that leaks is squared because a
small one paints no leak: on nano the scorer sees one where the share is above a quarter (docs/learning.md). A share
above 0.9 counts as 0.9: such a LoRA acts nearly the same without its trigger, as LoRAs trained without preservation do,
and the small differences between its steps are chance, so the loss decides. Where the loss has risen, the score is
L_0 - L, below 0. Where selectivity is not measured, the second factor is 1, and the lowest loss is the best.
"""

from __future__ import annotations

import math

from ..train.history import History

LARGEST_SHARE = 0.9  # of what leaks; above it differences are chance


def score(history: History, step: int) -> float:
    """The score of ``step``, -inf where it was not measured after training began."""
    loss = history.validation.get(step, math.nan)
    if not step or not math.isfinite(loss):
        return -math.inf
    gained = history.validation.get(0, 0.0) - loss  # without L_0 only the order of losses is known: all are below 0
    taught, leaked = history.selectivity.get(step, (1.0, 0.0))
    return less_leak(gained, leaked / taught if taught else 0.0)


def less_leak(gained: float, leaked: float) -> float:
    """The score of a LoRA whose validation loss has fallen by ``gained``; ``leaked``: the share that leaks."""
    return gained * (1 - min(leaked, LARGEST_SHARE) ** 2) if gained > 0 else gained


def best_step(history: History) -> int | None:
    """The step with the highest score, the earliest of several; None before anything was measured."""
    scores = {step: score(history, step) for step in sorted(history.validation)}
    best = max(scores, key=scores.get, default=None)
    return best if best is not None and scores[best] > -math.inf else None
