"""Preservation: what stays as the base model has it."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.options import PreservationConfig
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
            inputs=[
                io.Combo.Input(
                    "kind", options=list(PreservationConfig.KINDS), default="class",
                    tooltip="class keeps what the class word means (differential output preservation). blank keeps "
                    "what comes without a caption, and needs neither trigger nor class word.",
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=1_000_000,
                    tooltip="Preserve at every n-th step only: 2 saves a third of the time and keeps somewhat less.",
                ),
                io.Boolean.Input(
                    "together", default=False, advanced=True,
                    tooltip="Run both passes as one batch: twice the memory of a step, and a tenth faster at most on "
                    "two CPU cores.",
                ),
                io.Float.Input(
                    "outside_mask", default=0.0, min=0.0, max=1000.0, step=0.1, advanced=True,
                    tooltip="Keeps the base model's prediction where an image's mask is dark, this strongly. 0 is off, "
                    "0.5 is AI Toolkit's. Needs masks on the data set; one more forward pass.",
                ),
            ],
            outputs=[FluxPreservation.Output(display_name="preservation")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **v) -> io.NodeOutput:
        return io.NodeOutput({"preserve": PreservationConfig(**v)})
