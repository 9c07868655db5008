from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..flux2_train.adapters import read
from ..flux2_train.adapters.header import trigger_words
from ..flux2_train.errors import UserError
from ..flux2_train.host.graph_types import ModelPatcher
from ..flux2_train.host.lora import apply as host
from .browser.shown import keep
from .types import USE

NO_FILE = "none"


class LoraApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2LoraApply",
            display_name="LoRA Apply",
            category=USE,
            description="Puts a LoRA on a FLUX.2 model: one just trained, or a file. Refuses one that does not fit.",
            search_aliases=["load lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model that gets the LoRA; the one wired in is not changed."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How strongly the LoRA acts. 1 is as trained, 0 is without, 0.6 to 1.2 are usual.",
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="From LoRA Trainer. Leave free to use a file."),
                io.Combo.Input(
                    "file", options=[NO_FILE, *folder_paths.get_filename_list("loras")], default=NO_FILE, optional=True,
                    tooltip="A LoRA file from ComfyUI's loras folder, used when nothing is wired into 'lora'.",
                ),
                io.Combo.Input(
                    "mode", options=list(host.MODES), default=host.AUTO, optional=True, advanced=True,
                    tooltip="'merged' changes the weights while sampling, 'bypass' computes the LoRA beside them. "
                    "'auto' bypasses on quantised models, where merging rounds much of a LoRA away.",
                ),
                io.String.Input(
                    "include", default="", optional=True, advanced=True,
                    tooltip="Only these layers of the LoRA act: glob patterns on layer names with commas between, such "
                    "as double_blocks.* or *.linear2. Empty takes all.",
                ),
                io.String.Input(
                    "exclude", default="", optional=True, advanced=True,
                    tooltip="These layers of the LoRA do not act: glob patterns on layer names with commas between, "
                    "such as *txt*. Empty leaves none out.",
                ),
                io.Boolean.Input(
                    "allow_unmatched", default=False, optional=True, advanced=True,
                    tooltip="Put on what fits even if the file has keys that mean nothing in this model, such as a "
                    "text encoder's. Off refuses such a file by name.",
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, strength: float, lora: dict | None = None, file: str = NO_FILE, mode: str = host.AUTO,
        include: str = "", exclude: str = "", allow_unmatched: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        weights = lora if lora is not None else _load(file)
        chosen = host.on_layers(host.read(model, weights, allow_unmatched), include, exclude)
        applied = host.put(model, chosen, strength, mode)
        words = trigger_words(weights)
        lines = [f"trigger: {words}"] if words else []
        text = "\n".join([*lines, host.describe(model, chosen, strength, mode)])
        return io.NodeOutput(applied, ui=keep(cls.hidden.unique_id, text))


def _load(file: str) -> dict:
    if file == NO_FILE:
        raise UserError("LoRA Apply has no LoRA: wire LoRA Trainer into 'lora' or choose a file.")
    return read.load(Path(folder_paths.get_full_path_or_raise("loras", file)))
