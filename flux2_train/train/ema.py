"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``s <- d s + (1 - d) p`` after every step, where d is 0 before step ``warmup`` and ``decay`` from then on."""

    def __init__(self, parameters: list[nn.Parameter], decay: float, warmup: int = 0):
        self.parameters, self.decay, self.warmup, self.steps = parameters, decay, warmup, 0
        self.shadow = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters to the average. Call after every step."""
        self.steps += 1
        weight = 1.0 if self.steps < self.warmup else 1 - self.decay
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the parameters hold the average; their own values return after it."""
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return {"steps": self.steps, "shadow": [s.clone() for s in self.shadow]}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``."""
        self.steps = state["steps"]
        for own, saved in zip(self.shadow, state["shadow"], strict=True):
            own.copy_(saved)


@contextmanager
def weights_to_use(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The weights that the optimizer wants used outside training: schedule-free AdamW trains with other ones."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # rounds on its way back
        torch._foreach_copy_([parameter.detach() for parameter in parameters], trained)
