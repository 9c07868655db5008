"""Loss scaling for models that compute in fp16, whose gradients would otherwise be too small for its exponent."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FIRST, LARGEST = 2.0**16, 2.0**24
GROW_AFTER = 200  # updates without an overflow, after which twice the scale is tried
PATIENCE = 10  # halvings in a row after which it is not the scale that is wrong


class LossScale:
    """The loss is multiplied before backward, and the gradients are divided by the same power of two after it.

    Micikevicius et al. 2018, section 3.2. Where a gradient overflows, the scale is halved and the update is left out.
    With ``on`` false the scale is 1 and nothing is changed.
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
        """Whether to leave an update out, whose gradients are ``finite`` or not, because the scale was too large.

        False after PATIENCE halvings in a row: the gradients are then not finite for another reason.
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
        """What ``load_state_dict`` needs to go on."""
        return {"scale": self.scale, "good": self.good, "halved": self.halved}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``'s state. Where this device needs no scaling, or needs it now, the state is left."""
        if self.on and state["scale"] != 1:
            self.scale, self.good, self.halved = state["scale"], state["good"], state["halved"]
