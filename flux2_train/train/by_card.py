"""Norms of tensors that lie on several cards, in the order and with the rounding of one card."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of every tensor (n,), each computed where the tensor lies, on the first one's card."""
    found: dict[int, Tensor] = {}
    for card in dict.fromkeys(tensor.device for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.device == card]
        own = torch.stack(torch._foreach_norm([tensors[place] for place in places], order))
        found |= dict(zip(places, own.to(tensors[0].device).unbind(), strict=True))
    return torch.stack([found[place] for place in range(len(tensors))])


@torch.no_grad()
def clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale the gradients so that their norm together is at most ``most``, and return what it was.

    torch's own function, which one card runs, adds up the cards one after the other, so that the sum rounds otherwise.
    """
    if len({parameter.device for parameter in parameters}) == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, most).item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    total = torch.linalg.vector_norm(norms(gradients))
    if math.isfinite(most):
        factor = torch.clamp(most / (total + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return total.item()
