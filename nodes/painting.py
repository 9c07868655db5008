"""The inputs that all painting nodes share."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..flux2_train.settings.previews import PreviewSettings
from . import fields

SAMPLERS = {"options": comfy.samplers.SAMPLER_NAMES}
COMMON = {"advanced": None, "optional": False}  # folded away in Validation, but not in a node that only paints


def prompt() -> io.String.Input:
    """What to paint."""
    return io.String.Input("prompt", multiline=True, tooltip="What to paint; include your trigger word.")


def inputs(*names: str, **changes) -> list:
    """Inputs of Validation, by name."""
    return fields.inputs(PreviewSettings, *names, **{"sampler": SAMPLERS, **changes})


def references(most: int, tooltip: str) -> io.Autogrow.Input:
    """Reference images, up to ``most``."""
    reference = io.Image.Input("reference", tooltip="An image to edit or to take things from.")
    template = io.Autogrow.TemplatePrefix(reference, prefix="reference", min=0, max=most)
    return io.Autogrow.Input("references", optional=True, template=template, tooltip=tooltip)
