"""Preservation: what stays as the base model has it."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.objective import PreservationSettings
from . import fields
from .types import CATEGORY, FluxPreservation


class Preservation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Preservation",
            display_name="Preservation",
            category=CATEGORY,
            description="What stays as the base model has it; LoRA Trainer's 'preservation' says how strongly.",
            search_aliases=["dop", "differential output preservation", "prior", "regularisation"],
            inputs=fields.inputs(PreservationSettings),
            outputs=[FluxPreservation.Output(display_name="preservation")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput({"preservation_options": PreservationSettings(**widgets)})
