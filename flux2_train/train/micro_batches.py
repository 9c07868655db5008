"""The micro-batches of a step: what their parts report, and how they are computed over several cards at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..host.borrowed.pipeline import in_flight
from .history import Unread
from .step_input import Memo, ObjectivePart, StepInput

Part = Callable[[StepInput, Memo], ObjectivePart]
# Runs a part's forward and backward pass, in which each sample has a weight, and returns what it reports.
Run = Callable[[Part, StepInput, Memo, float], ObjectivePart]


def over_cards(
    batches: Iterable[tuple[StepInput, float]],
    parts: Sequence[Part],
    run: Run,
    cards: Sequence[torch.device],
    most: int,
) -> list[Unread]:
    """The same as ``one_by_one``, to the last bit, with so many parts at a time at ``most`` in flight over the cards.

    All inputs are made before, and with them what the model samples itself (scheduled sampling).
    """
    batches = list(batches)
    memos: list[Memo] = [{} for _ in batches]
    jobs = [partial(run, part, inputs, memo, weight)
            for (inputs, weight), memo in zip(batches, memos, strict=True) for part in parts]  # fmt: skip
    done = in_flight(cards, jobs, most)
    each = [done[start : start + len(parts)] for start in range(0, len(done), len(parts))]
    return [unread(*batch, own) for batch, own in zip(batches, each, strict=True)]


def reported(part: ObjectivePart) -> ObjectivePart:
    """A part without its graph."""
    return ObjectivePart(
        *(None if t is None else t.detach() for t in (part.loss, part.velocity_error, part.preservation))
    )


def unread(inputs: StepInput, weight: float, parts: Sequence[ObjectivePart]) -> Unread:
    """What the parts of a micro-batch report together."""
    errors = _sum([part.velocity_error for part in parts])
    preservation = _sum([part.preservation for part in parts])
    nothing = inputs.t.new_zeros(())
    return Unread(
        weight,
        nothing if errors is None else errors.sum(),
        nothing if preservation is None else preservation.sum(),
        inputs.t[: 0 if errors is None else len(errors)],
        inputs.t[:0] if errors is None else errors,
    )


def _sum(reports: Sequence[Tensor | None]) -> Tensor | None:
    """The elementwise sum of those that are there; None if none is."""
    there = [report for report in reports if report is not None]
    return sum(there[1:], there[0]) if there else None
