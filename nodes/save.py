from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.options import SaveConfig
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
            inputs=[
                io.Combo.Input(
                    "format", options=list(SaveConfig.FORMATS), default="comfyui",
                    tooltip="'comfyui' loads in ComfyUI, diffusers and ai-toolkit; 'diffusers' is the same but refuses "
                    "what diffusers cannot load, and writes DoRA its way, which OneTrainer reads too; 'kohya' is for "
                    "musubi-tuner too; 'peft' is a folder for peft.",
                ),
                io.Combo.Input(
                    "precision", options=list(SaveConfig.PRECISIONS), default="bf16",
                    tooltip="How the numbers are stored. bf16 is enough; fp32 doubles the file and is for training on.",
                ),
                io.Int.Input(
                    "plain_rank", default=0, min=0, max=4096,
                    tooltip="Save DoRA, LoHa or LoKr as the nearest plain LoRA of this rank, with its error stated. 0 "
                    "saves them as they are.",
                ),
                io.Boolean.Input(
                    "certificate", default=True,
                    tooltip="Load the saved file back as ComfyUI would and compare what it adds to every layer with "
                    "what the trained LoRA adds. Costs one small prediction.",
                ),
            ],
            outputs=[FluxSaveOptions.Output(display_name="save")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(SaveConfig(**settings))
