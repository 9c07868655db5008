"""Training Objective: how wrong a prediction is, and towards what it is pulled."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.objective import GuardSettings, GuidanceSettings, LossSettings
from . import fields
from .types import CATEGORY, FluxObjective

SECTIONS = {"loss": LossSettings, "guidance": GuidanceSettings, "guard": GuardSettings}


class TrainingObjective(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2TrainingObjective",
            display_name="Training Objective",
            category=CATEGORY,
            description="How wrong a prediction is and towards what it is pulled: loss, guidance, references, alarms.",
            search_aliases=["loss", "huber", "contrastive guidance", "cfg"],
            inputs=[widget for kind in SECTIONS.values() for widget in fields.inputs(kind)],
            outputs=[FluxObjective.Output(display_name="objective")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput({name: fields.taken(kind, widgets) for name, kind in SECTIONS.items()})
