"""What a step is made of: what is drawn for a batch, what the model gets of it, and the parts of its loss."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.samples import Sample
from ..flow.target import interpolate, velocity_target
from ..host.borrowed.pipeline import once
from ..host.borrowed.routing import Route
from ..streaming.uploads import uploaded

Memo = dict[str, Tensor]  # values without gradient by name; passing the same memo again reuses them


@dataclass(frozen=True)
class Drawn:
    """Everything random about a batch, on the CPU: ``noise`` (B, 128, h, w), times ``t`` (B,), dev's ``guidance``.

    ``routes`` say which image tokens skip blocks; ``offsets`` after how many sampling steps of its own the model gets
    each sample, 0 for those with noise on the image.
    """

    noise: Tensor
    t: Tensor
    guidance: list[float]
    routes: tuple[Route, ...]
    offsets: list[int]


@dataclass(frozen=True)
class StepInput:
    """A batch with its randomness drawn: ``x_t`` and ``target`` (B, 128, h, w), times ``t`` (B,).

    ``guidance`` holds one value per sample for models with a guidance input (dev). ``routes`` say which image tokens
    skip blocks. ``on_path`` is ``x_t`` before the model has sampled some of it (``rolled``), if it has. ``entry`` are
    ``x_t`` and ``t`` on the card where the model takes them in, if the loss is computed on another one.
    """

    samples: list[Sample]
    x_t: Tensor
    t: Tensor
    target: Tensor
    guidance: list[float]
    routes: tuple[Route, ...] = ()
    on_path: Tensor | None = None
    entry: tuple[Tensor, Tensor] | None = None

    def changed(self, x_t: Tensor, **others) -> StepInput:
        """The same with another ``x_t``."""
        return replace(self, x_t=x_t, entry=None, **others)

    def entering(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``x_t`` and ``t`` on the device on which the model takes them in."""
        return self.entry or (self.x_t.to(device), self.t.to(device))

    @property
    def rolled(self) -> Tensor:
        """(B,) whether the model itself made the sample's ``x_t``."""
        if self.on_path is None:
            return torch.zeros(len(self.samples), dtype=torch.bool, device=self.x_t.device)
        return (self.x_t != self.on_path).flatten(1).any(1)


def step_input(
    batch: Sequence[Sample], drawn: Drawn, rows: Sequence[int], device: torch.device, enters: torch.device | None = None
) -> StepInput:
    """What some ``rows`` of a batch are trained on, on the device of the loss.

    If the model ``enters`` on another device, ``entry`` is computed there again: a copy from card to card would wait
    for all that either of them has begun.
    """
    samples = [batch[i] for i in rows]
    x0 = torch.cat([s.latent for s in samples])
    routes = tuple(route.rows(rows) for route in drawn.routes)
    guidance = [drawn.guidance[i] for i in rows]

    def on(place: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        latents = uploaded(x0, place).to(torch.float32)
        noise, t = uploaded(drawn.noise[rows], place), uploaded(drawn.t[rows], place)
        return interpolate(latents, noise, t), t, velocity_target(latents, noise)

    entry = None if enters in (None, device) else on(enters)[:2]
    return StepInput(samples, *on(device), guidance, routes, entry=entry)


def kind_of(batch: Sequence[Sample], preserving: bool) -> Hashable:
    """What steps of equal work have in common: the sizes of their images, and whether they preserve."""
    return preserving, *sorted(sample.shape for sample in batch)


@dataclass(frozen=True)
class ObjectivePart:
    """One part of a step's loss: ``loss`` (B,) is what backward starts from, the other two (B,) are only reported."""

    loss: Tensor
    velocity_error: Tensor | None = None
    preservation: Tensor | None = None


def frozen(memo: Memo, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """The value of ``compute`` without gradient. It is computed once and then read from ``memo``."""

    def value() -> Tensor:
        with torch.no_grad():
            return compute().detach()

    return once(memo, name, value)
