from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.saving import SaveSettings
from . import fields
from .types import CATEGORY, FluxSaveOptions


class SaveOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2SaveOptions",
            display_name="Save Options",
            category=CATEGORY,
            description="In which format and precision LoRA Trainer saves the LoRA, and whether it is loaded back to "
            "prove its strength.",
            search_aliases=["kohya", "diffusers", "peft", "export lora", "convert lora"],
            inputs=fields.inputs(SaveSettings),
            outputs=[FluxSaveOptions.Output(display_name="save")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(SaveSettings(**widgets))
