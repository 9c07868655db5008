"""What watches a run and speaks up: losses that are no numbers, a loss that runs away, adapters that do not learn."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import UserError

WINDOW = 20  # steps over which losses are averaged
FEW = 5  # steps of which the first may warm up and another be an odd one out
SLOWER = 3.0  # more than buckets of different sizes and preservation on some steps only differ by in the median
PATIENCE = 3  # successive steps without gradient that make an adapter dead


@dataclass
class BadLosses:
    """Steps whose loss is NaN or infinite are left out; ``limit`` of them in a row stop the run."""

    limit: int
    total: int = 0
    in_a_row: int = 0
    items: set[str] = field(default_factory=set)

    def skip(self, loss: float, items: list[str], step: int) -> bool:
        """True if the step must be left out. ``items`` are the file names of the batch."""
        if math.isfinite(loss):
            self.in_a_row = 0
            return False
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        self.items.update(items)
        if self.in_a_row >= self.limit:
            times, self.in_a_row = self.in_a_row, 0  # whoever goes on from here gets as many tries again
            raise UserError(
                f"The loss is {loss} after {step} steps, {times} times in a row (images: "
                f"{', '.join(sorted(self.items)[:5])}). Lower the learning rate, look at these images, or clear the "
                "latent cache."
            )
        return True

    def state_dict(self) -> dict:
        """What ``load_state_dict`` needs to go on."""
        return {"total": self.total, "in_a_row": self.in_a_row, "items": sorted(self.items)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``'s state."""
        self.total, self.in_a_row, self.items = state["total"], state["in_a_row"], set(state["items"])


class Divergence:
    """Tells once when the mean loss of the last steps is ``factor`` times the lowest such mean so far."""

    def __init__(self, factor: float, stop: bool = False):
        self.factor, self.stop, self.told = factor, stop, False
        self.recent: list[float] = []
        self.best = math.inf

    def check(self, loss: float) -> str | None:
        """A sentence the first time the loss has run away. Raises UserError instead if it shall stop the run."""
        if not self.factor or self.told:
            return None
        self.recent = [*self.recent, loss][-WINDOW:]
        if len(self.recent) < WINDOW:
            return None
        mean = sum(self.recent) / WINDOW
        self.best = min(self.best, mean)
        if mean <= self.factor * self.best:
            return None
        text = (
            f"The loss of the last {WINDOW} steps averages {mean:.3g}, {mean / self.best:.1f} times its lowest "
            f"({self.best:.3g}): training diverges. Lower the learning rate or the guidance scale."
        )
        if self.stop:
            self.recent = []  # whoever goes on from here gets as many steps again
            raise UserError(text)
        self.told = True
        return text

    def state_dict(self) -> dict:
        """What ``load_state_dict`` needs to go on."""
        return {"told": self.told, "recent": self.recent, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``'s state."""
        self.told, self.recent, self.best = state["told"], list(state["recent"]), state["best"]


class DeadAdapters:
    """Raises when an adapter gets no gradient at all on PATIENCE successive steps that should have given it one."""

    def __init__(self, layers: dict[str, list[nn.Parameter]]):
        self.layers = layers
        self.silent = dict.fromkeys(layers, 0)

    def check(self, loss: float) -> None:
        """Look at the gradients of a step with a learning rate. Call after backward, before they are cleared."""
        if not loss:
            return
        alive = self._alive()
        for name in self.layers:
            self.silent[name] = 0 if name in alive else self.silent[name] + 1
        dead = [name for name, steps in self.silent.items() if steps >= PATIENCE]
        if dead:
            raise UserError(
                f"{len(dead)} of {len(self.layers)} adapters get no gradient ({', '.join(dead[:3])}): they would stay "
                "untrained. Another node's patch on the MODEL may cut them off; wire it in without patches."
            )

    def state_dict(self) -> dict:
        """What ``load_state_dict`` needs to go on."""
        return dict(self.silent)

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``'s state."""
        self.silent = dict(state)

    def _alive(self) -> set[str]:
        named = [(name, p.grad) for name, parameters in self.layers.items() for p in parameters if p.grad is not None]
        if not named:
            return set()
        largest = torch.stack(torch._foreach_norm([gradient for _, gradient in named], float("inf"))).tolist()
        return {name for (name, _), size in zip(named, largest, strict=True) if size > 0}


class SlowSteps:
    """Tells once when steps are SLOWER times as slow as they were, or as the plan expects them to be.

    Medians count: of WINDOW steps, against the plan of the first FEW, because a run may spill from its first step on.
    """

    def __init__(self):
        self.recent: list[float] = []
        self.best, self.told = math.inf, False

    def check(self, seconds: float, expected: float = math.inf, spills: bool = True) -> str | None:
        """A sentence the first time it happens. ``expected``: what the plan says, infinite where there is none.

        ``spills``: whether memory may have spilled by now. Where it has not, a step is slow because of many small
        operations, a busy processor or another program, none of which is worth a warning about the card.
        """
        self.recent = [*self.recent, seconds][-WINDOW:]
        if self.told or len(self.recent) < FEW:
            return None
        median = statistics.median(self.recent)
        if len(self.recent) == WINDOW:
            self.best = min(self.best, median)
        if not spills:
            return None
        if median > SLOWER * expected:
            return self._tell(f"Steps take {median:.3g} s where the plan expects {expected:.3g} s.")
        if median > SLOWER * self.best:
            return self._tell(f"Steps take {median:.3g} s now and took {self.best:.3g} s before.")
        return None

    def _tell(self, what: str) -> str:
        self.told = True
        return (
            f"{what} The card is full, and Windows then spills its memory into the computer's without a word: close "
            "other programs that use the card, or lower resolution, batch or rank, or set Memory's memory_limit below "
            "what the card has; Cancel keeps what was learned."
        )


class Plateau:
    """Ends a run whose validation loss has not fallen below its lowest for ``patience`` validations; 0 never does."""

    def __init__(self, patience: int):
        self.patience = patience

    def reached(self, validation: dict[int, float]) -> bool:
        """``validation`` holds the losses by step, in the order in which they were measured; step 0 counts as one."""
        losses = list(validation.values())
        return bool(self.patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience
