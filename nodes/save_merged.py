from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..flux2_train.errors import UserError
from ..flux2_train.host.loading import files
from ..flux2_train.host.lora.merge import PRECISIONS, SOURCE, merge
from ..flux2_train.names import problem, shown
from .apply import NO_FILE
from .browser.shown import keep
from .types import USE


class SaveMergedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2SaveMergedModel",
            display_name="Save Merged Model",
            category=USE,
            description="Writes a FLUX.2 transformer file with a LoRA file merged into it, layer by layer: memory for "
            "a few layers is enough.",
            search_aliases=["merge lora", "bake lora", "save model"],
            inputs=[
                io.Combo.Input(
                    "transformer", options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="The model file that gets the LoRA; the file itself is not changed.",
                ),
                io.Combo.Input(
                    "file", options=[NO_FILE, *folder_paths.get_filename_list("loras")], default=NO_FILE,
                    tooltip="The LoRA file from models/loras, of any kind and of any trainer's format.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How strongly the LoRA is merged in; 1 is as trained.",
                ),
                io.String.Input(
                    "name", default="flux2_merged",
                    tooltip="Name of the new file in models/diffusion_models. Nothing is overwritten.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default=SOURCE,
                    tooltip="'source' keeps each layer's own format and says how much rounding changed the LoRA; bf16, "
                    "fp16, fp32 and fp8 convert the whole model.",
                ),
            ],
            outputs=[io.String.Output(display_name="saved file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, transformer: str, file: str, strength: float, name: str, precision: str) -> io.NodeOutput:
        if file == NO_FILE:
            raise UserError("Save Merged Model has no LoRA: choose a file.")
        wrong = problem(name)
        if wrong:
            raise UserError(
                f"The name {shown(name)!r} cannot be a file name, because {wrong}; it goes into "
                "models/diffusion_models as it is."
            )
        source = Path(folder_paths.get_full_path_or_raise("diffusion_models", transformer))
        lora = Path(folder_paths.get_full_path_or_raise("loras", file))
        output = files.model_folder("diffusion_models") / f"{name}.safetensors"
        merged = str(merge(source, [(lora, strength)], output, precision))
        return io.NodeOutput(output.name, ui=keep(cls.hidden.unique_id, merged))
