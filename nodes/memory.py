from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.memory import MemorySettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions


class Memory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Memory",
            display_name="Memory",
            category=OPTIONS,
            description="What stays in host memory while LoRA Trainer trains, and what is computed twice to "
            "save memory. Nothing here changes what is learned. Untouched, everything is chosen to fit your card.",
            search_aliases=["vram", "blocks to swap", "group offload", "layer offloading", "low vram", "out of memory"],
            inputs=fields.inputs(MemorySettings),
            outputs=[FluxOptions.Output(display_name="memory")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Memory", {"memory": MemorySettings(**widgets)}))
