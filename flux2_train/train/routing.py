"""Draws which image tokens of a batch go through the routed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..data.samples import Sample
from ..errors import UserError
from ..flow.routing import bright, draw_kept, ratio_at
from ..host.borrowed.routing import Route
from ..settings.routing import RoutingSettings


@dataclass(frozen=True)
class Blocks:
    """A route of the settings with its numbers resolved: ``first`` and ``last`` block, both included."""

    first: int
    last: int
    ratio: float


def resolved(settings: RoutingSettings, blocks: int) -> tuple[Blocks, ...]:
    """The routes on a model with ``blocks`` blocks, in its order. Raises UserError for those that it cannot have."""
    routes = [Blocks(_number(start, blocks), _number(end, blocks), ratio) for start, end, ratio in settings.routes]
    for route in routes:
        if route.last < route.first:
            raise UserError(f"A route goes from block {route.first} to block {route.last}; the last must not be lower.")
    routes.sort(key=lambda route: route.first)
    for before, after in pairwise(routes):
        if after.first <= before.last:
            raise UserError(
                f"Two routes overlap: blocks {before.first} to {before.last} and {after.first} to {after.last}."
            )
    return tuple(routes)


def _number(index: int, blocks: int) -> int:
    if not -blocks <= index < blocks:
        raise UserError(f"A route names block {index}, but the model has {blocks} blocks: 0 to {blocks - 1}.")
    return index % blocks


class Router:
    """Draws the routes of a run of ``total`` steps on a model with ``blocks`` blocks."""

    def __init__(self, settings: RoutingSettings, blocks: int, total: int):
        self.settings, self.routes, self.total = settings, resolved(settings, blocks), total

    def draw(self, batch: Sequence[Sample], step: int, generator: torch.Generator) -> tuple[Route, ...]:
        """The routes of optimizer step ``step`` (from 1); the generator is not used where no token skips."""
        if not self.routes:
            return ()
        done, until, ramp = (step - 1) / self.total, self.settings.until / 100, self.settings.ramp / 100
        ratios = [ratio_at(route.ratio, done, ramp, until) for route in self.routes]
        tokens = batch[0].latent[0, 0].numel()
        return tuple(
            Route(route.first, route.last, draw_kept(tokens, ratio, self._forced(batch, tokens), generator))
            for route, ratio in zip(self.routes, ratios, strict=True)
            if ratio < 1
        )

    def _forced(self, batch: Sequence[Sample], tokens: int) -> torch.Tensor:
        """(B, tokens) bool: what ``keep_mask`` never lets skip."""
        forced = torch.zeros(len(batch), tokens, dtype=torch.bool)
        for row, sample in zip(forced, batch, strict=True):
            if self.settings.keep_mask and sample.mask is not None:
                row |= bright(sample.mask)
        return forced
