"""Save Options and Checkpoints: how the LoRA is saved, and when a run's state is saved."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.saving import CheckpointSettings, SaveSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions


class SaveOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2SaveOptions",
            display_name="Save Options",
            category=OPTIONS,
            description="In which format and precision LoRA Trainer saves the LoRA, and whether it is loaded back to "
            "prove its strength.",
            search_aliases=["kohya", "diffusers", "peft", "export lora", "convert lora"],
            inputs=fields.inputs(SaveSettings),
            outputs=[FluxOptions.Output(display_name="save")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Save Options", {"save": SaveSettings(**widgets)}))


class Checkpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Checkpoints",
            display_name="Checkpoints",
            category=OPTIONS,
            description="When LoRA Trainer saves the whole state of a run, from which it goes on after an interruption "
            "as if nothing had happened, and whether it stops early.",
            search_aliases=["resume", "save every", "early stopping", "snapshot"],
            inputs=fields.inputs(CheckpointSettings),
            outputs=[FluxOptions.Output(display_name="checkpoints")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Checkpoints", {"checkpoints": CheckpointSettings(**widgets)}))
