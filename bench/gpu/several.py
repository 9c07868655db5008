"""Rows that need several cards: one model over all of them, and as many processes as there are cards."""

from __future__ import annotations

import comfy.model_management

from bench import scaling as processes
from bench.gpu import models
from bench.gpu.steps import step
from flux2_train.host.system import cards
from flux2_train.settings.memory import AUTO

STEPS = 5
ONE_CARD = {"absent": "ComfyUI sees one card"}


def over_cards(flavour: str, pixels: int, precision: str, accumulate: int) -> dict:
    """A row: ``steps.step`` with ``cards`` of Memory on all cards. With ``accumulate`` they can work at the same time.

    ``seconds_of_a_pass`` are those of a step by its batches.
    """
    if len(cards.seen()) == 1:
        return dict(ONE_CARD)
    found = step(flavour, pixels, precision, cards=AUTO, accumulate=accumulate)
    each = found["seconds"] / accumulate
    return {**found, "seconds_of_a_pass": each, "words": f"{each:.3f} s for each pass"}


def scaling(flavour: str, pixels: int, precision: str, comfyui: str) -> dict:
    """A row: what more processes gain, weak and strong, see ``bench.scaling``. On a CPU one process and two."""
    device = comfy.model_management.get_torch_device().type
    counts = [1, 2] if device == processes.CPU else processes.doubled(len(cards.seen()))
    if len(counts) == 1:
        return dict(ONE_CARD)
    models.forget()  # the processes need the memory
    problem = processes.Problem(device, flavour, precision, pixels, STEPS, comfyui)
    cases = processes.measure(problem, counts, max(counts), repeats=1)
    return {"cases": cases, "words": "; ".join(processes.lines(cases))}
