"""Loss scaling for models that compute in fp16, where small gradients would otherwise become 0."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FIRST, LARGEST = 2.0**16, 2.0**24
GROW_AFTER = 200  # updates without an overflow, then the scale is doubled
PATIENCE = 10  # halvings in a row; if gradients still overflow, the scale is not the cause


class LossScale:
    """Multiplies the loss by a power of two before backward and divides the gradients by it afterwards.

    Micikevicius et al. 2018, section 3.2. If a gradient overflows, the scale is halved and the update is left out.
    With ``on`` false nothing is scaled.
    """

    def __init__(self, on: bool):
        self.on, self.scale, self.good, self.halved = on, FIRST if on else 1.0, 0, 0

    def up(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        return loss * self.scale if self.on else loss

    @torch.no_grad()
    def down(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, exactly."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.on and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    def overflowed(self, finite: bool) -> bool:
        """Whether to leave the update out because the scale is too large. ``finite``: whether all gradients are finite.

        False after PATIENCE halvings in a row: then the gradients have another reason not to be finite.
        """
        if not self.on:
            return False
        if finite:
            self.good, self.halved = self.good + 1, 0
            if self.good == GROW_AFTER:
                self.scale, self.good = min(2 * self.scale, LARGEST), 0
            return False
        self.good = 0
        if self.halved == PATIENCE:
            return False
        self.scale, self.halved = self.scale / 2, self.halved + 1
        return True

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return {"scale": self.scale, "good": self.good, "halved": self.halved}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state of ``state_dict``; it is ignored unless that run and this one both scale."""
        if self.on and state["scale"] != 1:
            self.scale, self.good, self.halved = state["scale"], state["good"], state["halved"]
