"""speed 'certified': which layers of a run are multiplied in 8 bits, by how far that is from exact, and by its gain.

Bounds are relative errors and cosines. Errors of products that are random and small add up over a model's blocks like
steps of a random walk, so the whole gradient may be further off than any layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

LAYER_ERROR, LAYER_COSINE = 0.05, 0.998  # of a layer's outputs and of the gradient of its input
WHOLE_ERROR, WHOLE_COSINE = 0.15, 0.99  # of the gradient of all adapters
RETURNED = 0.25  # of the chosen layers, the worst ones: if the whole is too far off they are exact again
FEWEST = 0.25  # of all layers: with fewer the gain is not worth it
LEAST = 0.02  # of a step's time that must be won


@dataclass(frozen=True)
class Agreement:
    """How far something is from exact: the relative ``error`` of its norm, and the ``cosine`` between both."""

    error: float
    cosine: float

    @classmethod
    def of(cls, difference: float, exact: float, other: float) -> Agreement:
        """From the L2 norms of the difference, of what is exact, and of what is compared with it."""
        if difference == 0:
            return cls(0.0, 1.0)
        if not exact or not other:
            return cls(math.inf, 0.0)
        return cls(difference / exact, (exact**2 + other**2 - difference**2) / (2 * exact * other))

    @classmethod
    def worst(cls, several: Sequence[Agreement]) -> Agreement:
        """The largest error and the smallest cosine of several."""
        return cls(max(each.badness for each in several), min(each.cosine for each in several))

    @property
    def badness(self) -> float:
        """The larger, the worse; what is no number is worst."""
        return self.error if math.isfinite(self.error) else math.inf

    def within(self, error: float, cosine: float) -> bool:
        """Whether both bounds are kept."""
        return self.error <= error and self.cosine >= cosine


@dataclass(frozen=True)
class Choice:
    """The ``layers`` that are multiplied in 8 bits, and what was measured: agreement of the gradient, and the gain.

    ``why`` says why there is none. ``weights`` names the precision of the weights that were measured.
    """

    layers: tuple[str, ...]
    weights: str
    whole: Agreement | None = None
    faster: float = 0.0
    why: str = ""

    def state_dict(self) -> dict:
        """What ``of_state`` takes."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def of_state(cls, state: dict) -> Choice:
        """The choice that a run has made."""
        whole = state["whole"] and Agreement(**state["whole"])
        return cls(tuple(state["layers"]), state["weights"], whole, state["faster"], state["why"])


def within_bounds(layers: dict[str, Agreement]) -> list[str]:
    """The layers that may be multiplied in 8 bits, the best first."""
    kept = [name for name, own in layers.items() if own.within(LAYER_ERROR, LAYER_COSINE)]
    return sorted(kept, key=lambda name: layers[name].badness)


def without_worst(chosen: Sequence[str], are: int) -> list[str]:
    """The chosen layers (the best first) of ``are`` without the worst of them; none if too few would be left."""
    kept = list(chosen[: math.floor(len(chosen) * (1 - RETURNED))])
    return kept if len(kept) >= FEWEST * are else []


def gain(exact: Sequence[float], other: Sequence[float]) -> float:
    """How many times as fast the other way is, by the medians of some seconds."""
    return median(exact) / median(other)


def worst_of(all_of: Sequence[dict[str, Agreement]]) -> dict[str, Agreement]:
    """Of each layer the worst agreement that any process has found."""
    names = {name: None for own in all_of for name in own}
    return {name: Agreement.worst([own[name] for own in all_of if name in own]) for name in names}
