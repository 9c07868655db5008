"""Guards of a run: against large gradients, bad losses, divergence, adapters that do not learn, and slow steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..names import counted

WINDOW = 20  # steps over which losses are averaged
FEW = 5  # steps, enough for a median: the first is slow from warm-up, another may be slow by chance
SLOWER = 3.0  # more than medians differ because of bucket sizes, or of preservation on some steps only
PATIENCE = 3  # an adapter without gradient on this many successive steps is dead


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of every tensor (n,), each computed where the tensor lies, on the first one's card."""
    cards = list(dict.fromkeys(tensor.device for tensor in tensors))
    if len(cards) == 1:
        return torch.stack(torch._foreach_norm(tensors, order))
    found: dict[int, Tensor] = {}
    for card in cards:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == card]
        own = torch.stack(torch._foreach_norm([tensors[place] for place in places], order))
        found |= dict(zip(places, own.to(tensors[0].device).unbind(), strict=True))
    return torch.stack([found[place] for place in range(len(tensors))])


@torch.no_grad()
def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients so that their norm together is at most ``most``, and return what it was (1,), unread.

    torch's own function, which one card runs, adds up the cards one after the other, so that the sum rounds otherwise.
    """
    if len({parameter.device for parameter in parameters}) == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, most).reshape(1)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(1)
    total = torch.linalg.vector_norm(norms(gradients))
    if math.isfinite(most):
        factor = torch.clamp(most / (total + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return total.reshape(1)


@dataclass
class BadLosses:
    """Leaves out steps whose loss is NaN or infinite, and stops the run after ``limit`` of them in a row."""

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
            times, self.in_a_row = self.in_a_row, 0  # a run resumed from here may again skip that many
            raise UserError(
                f"The loss is {loss} after {counted(step, 'step')}, {counted(times, 'time')} in a row (images: "
                f"{', '.join(sorted(self.items)[:5])}). Lower the learning rate, look at these images, or clear the "
                "latent cache."
            )
        return True

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return {"total": self.total, "in_a_row": self.in_a_row, "items": sorted(self.items)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``."""
        self.total, self.in_a_row, self.items = state["total"], state["in_a_row"], set(state["items"])


class Divergence:
    """Warns once when the mean loss of the last WINDOW steps exceeds ``factor`` times the lowest such mean so far."""

    def __init__(self, factor: float, stop: bool = False):
        self.factor, self.stop, self.warned = factor, stop, False
        self.recent: list[float] = []
        self.best = math.inf

    def check(self, loss: float) -> str | None:
        """A warning the first time the loss diverges, else None. Raises UserError instead if ``stop`` is set."""
        if not self.factor or self.warned:
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
            self.recent = []  # a run resumed from here fills a new window first
            raise UserError(text)
        self.warned = True
        return text

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return {"told": self.warned, "recent": self.recent, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``."""
        self.warned, self.recent, self.best = state["told"], list(state["recent"]), state["best"]


class DeadAdapters:
    """Raises UserError when an adapter gets no gradient on PATIENCE successive steps that should give it one."""

    def __init__(self, layers: dict[str, list[nn.Parameter]]):
        self.layers = layers
        self.steps_without = dict.fromkeys(layers, 0)

    def sizes(self) -> Tensor:
        """The largest number of each gradient that there is (n,), unread. Call between backward and clearing them."""
        gradients = [gradient for _, gradient in self._gradients()]
        return norms(gradients, math.inf) if gradients else torch.zeros(0)

    def check(self, loss: float, sizes: Tensor) -> None:
        """Look at a step's gradients, if the learning rate is not 0; ``sizes`` are of these."""
        if not loss:
            return
        named = zip(self._gradients(), sizes.tolist(), strict=True)
        learning = {name for (name, _), size in named if size > 0}
        for name in self.layers:
            self.steps_without[name] = 0 if name in learning else self.steps_without[name] + 1
        dead = [name for name, steps in self.steps_without.items() if steps >= PATIENCE]
        if dead:
            raise UserError(
                f"{len(dead)} of {len(self.layers)} adapters get no gradient ({', '.join(dead[:3])}): they would stay "
                "untrained. Another node's patch on the MODEL may cut them off; wire it in without patches."
            )

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return dict(self.steps_without)

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``."""
        self.steps_without = dict(state)

    def _gradients(self) -> list[tuple[str, Tensor]]:
        return [(name, p.grad) for name, parameters in self.layers.items() for p in parameters if p.grad is not None]


class SlowSteps:
    """Warns once when steps take SLOWER times as long as before, or as the plan expects.

    Compares medians of the last WINDOW steps. The comparison with the plan begins after FEW steps, because memory may
    spill from the first step on.
    """

    def __init__(self):
        self.recent: list[float] = []
        self.best, self.warned = math.inf, False

    def check(
        self, seconds: float, expected: float = math.inf, spills: bool = True, on_cpu: bool = False
    ) -> str | None:
        """A warning the first time steps are slow, else None. ``expected``: the plan's seconds, or infinity.

        ``spills`` says whether device memory may have spilled. If it has not, the step is slow for another reason (many
        small operations, a busy processor, another program), and a warning about the card would be wrong. ``on_cpu``:
        the processor trains; then only its own steps before are compared with, and nothing is said of a card.
        """
        self.recent = [*self.recent, seconds][-WINDOW:]
        if self.warned or len(self.recent) < FEW:
            return None
        median = statistics.median(self.recent)
        if len(self.recent) == WINDOW:
            self.best = min(self.best, median)
        if on_cpu and median > SLOWER * self.best:
            self.warned = True
            return (
                f"Steps take {median:.3g} s now and took {self.best:.3g} s before. The processor trains: another "
                "program uses it, or the computer's memory is full and goes to the disk. Close other programs; Cancel "
                "keeps what was learned."
            )
        if not spills:
            return None
        if median > SLOWER * expected:
            return self._warning(f"Steps take {median:.3g} s where the plan expects {expected:.3g} s.")
        if median > SLOWER * self.best:
            return self._warning(f"Steps take {median:.3g} s now and took {self.best:.3g} s before.")
        return None

    def _warning(self, what: str) -> str:
        self.warned = True
        return (
            f"{what} The card is full, and Windows then spills its memory into the computer's without a word: close "
            "other programs that use the card, or lower resolution, batch or rank, or set Memory's memory_limit below "
            "what the card has; Cancel keeps what was learned."
        )


class Plateau:
    """Says when the validation loss has set no new minimum for ``patience`` validations; 0 means never."""

    def __init__(self, patience: int):
        self.patience = patience

    def reached(self, validation: dict[int, float]) -> bool:
        """``validation``: losses by step, in the order in which they were measured. The one of step 0 counts, too."""
        losses = list(validation.values())
        return bool(self.patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience
