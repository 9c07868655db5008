from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..flux2_train.settings.adapter import NO_FILE, AdapterSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions


class AdapterOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2AdapterOptions",
            display_name="Adapter Options",
            category=OPTIONS,
            description="What kind of adapter LoRA Trainer trains, on which layers, and from which LoRA it starts.",
            search_aliases=["dora", "lokr", "loha", "rslora", "target modules", "resume lora"],
            inputs=fields.inputs(
                AdapterSettings,
                start_from={"options": [NO_FILE, *folder_paths.get_filename_list("loras")], "default": NO_FILE},
            ),
            outputs=[FluxOptions.Output(display_name="adapter")],
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str = NO_FILE, **settings) -> float:
        return _path(start_from).stat().st_mtime if start_from != NO_FILE else 0.0

    @classmethod
    def execute(cls, start_from: str = NO_FILE, **settings) -> io.NodeOutput:
        start = str(_path(start_from)) if start_from != NO_FILE else ""
        return io.NodeOutput(Options("Adapter Options", {"adapter": AdapterSettings(start_from=start, **settings)}))


def _path(file: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", file))
