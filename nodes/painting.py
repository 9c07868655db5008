"""Inputs that every node which paints has, in the same words; with ``RARE`` they are advanced ones."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

RARE = {"optional": True, "advanced": True}


def prompt() -> io.String.Input:
    """What to paint."""
    return io.String.Input("prompt", multiline=True, tooltip="What to paint; include your trigger word.")


def negative() -> io.String.Input:
    """What to steer away from."""
    return io.String.Input(
        "negative", multiline=True, default="", **RARE,
        tooltip="What to steer away from. Acts only where guidance mixes two predictions (klein base).",
    )  # fmt: skip


def side(name: str) -> io.Int.Input:
    """``width`` or ``height``."""
    return io.Int.Input(name, default=1024, min=16, max=8192, step=16, tooltip="Pixels; nano paints at 128.")


def steps(**rare: bool) -> io.Int.Input:
    """Sampling steps."""
    return io.Int.Input(
        "steps", default=0, min=0, max=200, **rare,
        tooltip="Sampling steps. 0 takes what the model was made for: 20 for base and dev, 4 distilled.",
    )  # fmt: skip


def guidance(**rare: bool) -> io.Float.Input:
    """Strength of guidance."""
    return io.Float.Input(
        "guidance", default=0.0, min=0.0, max=30.0, step=0.1, **rare,
        tooltip="How strictly the prompt is followed. 0 takes the flavour's own, 4. Distilled klein has none and "
        "ignores it.",
    )  # fmt: skip


def sampler(**rare: bool) -> io.Combo.Input:
    """The solver."""
    return io.Combo.Input(
        "sampler", options=comfy.samplers.SAMPLER_NAMES, default="euler", **rare,
        tooltip="The solver. euler is what FLUX.2 was made with.",
    )  # fmt: skip


def resize_references() -> io.Boolean.Input:
    """Whether references are scaled."""
    return io.Boolean.Input(
        "resize_references", default=True, **RARE,
        tooltip="Scale reference images down to a megapixel (never up). Off keeps their size, which costs memory and "
        "time.",
    )  # fmt: skip


def references(most: int, tooltip: str) -> io.Autogrow.Input:
    """Reference images, up to ``most``."""
    reference = io.Image.Input("reference", tooltip="An image to edit or to take things from.")
    template = io.Autogrow.TemplatePrefix(reference, prefix="reference", min=0, max=most)
    return io.Autogrow.Input("references", optional=True, template=template, tooltip=tooltip)
