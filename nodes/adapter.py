from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..flux2_train.options import AdapterConfig
from .types import CATEGORY, FluxAdapterOptions

NO_FILE = "none"


class AdapterOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2AdapterOptions",
            display_name="Adapter Options",
            category=CATEGORY,
            description="What kind of adapter LoRA Trainer trains, on which layers, and from which LoRA it starts.",
            search_aliases=["dora", "lokr", "loha", "rslora", "target modules", "resume lora"],
            inputs=[
                io.Combo.Input(
                    "kind", options=list(AdapterConfig.KINDS), default="lora",
                    tooltip="'lora' loads everywhere. 'lokr' and 'loha' load in ComfyUI; LoKr holds more for its size.",
                ),
                io.Boolean.Input(
                    "dora", default=False,
                    tooltip="DoRA: learns each output's magnitude apart from its direction. Often a little better, "
                    "slower, and not for diffusers. LoRA only.",
                ),
                io.Boolean.Input(
                    "rslora", default=False,
                    tooltip="Scale by alpha / sqrt(rank), which keeps large ranks (64 and more) learning. LoRA only.",
                ),
                io.Float.Input(
                    "dropout", default=0.0, min=0.0, max=0.99, step=0.01,
                    tooltip="Share of the adapters' inputs dropped in each step, against memorising. 0.05 to 0.1 is "
                    "usual, 0 is off.",
                ),
                io.Float.Input(
                    "lora_plus", default=1.0, min=1.0, max=1000.0, step=0.5,
                    tooltip="LoRA+: how many times faster the second matrix learns than the first. 16 is the paper's "
                    "value, 1 is off. LoRA only.",
                ),
                io.Combo.Input(
                    "start_from", options=[NO_FILE, *folder_paths.get_filename_list("loras")], default=NO_FILE,
                    tooltip="A LoRA file to go on from, in any trainer's format. The rank may be raised.",
                ),
                io.String.Input(
                    "include", default="",
                    tooltip="Only layers whose name fits one of these patterns, such as '*.img_attn.*, *.linear2'. "
                    "Empty is all that the targets chose.",
                ),
                io.String.Input(
                    "exclude", default="",
                    tooltip="No layers whose name fits one of these patterns, such as 'double_blocks.0.*'.",
                ),
                io.String.Input(
                    "double_blocks", default="",
                    tooltip="Only these double blocks, counted from 0, such as '0-3, 7'. Empty is all of them.",
                ),
                io.String.Input(
                    "single_blocks", default="",
                    tooltip="Only these single blocks, counted from 0, such as '10-19'. Empty is all of them.",
                ),
                io.String.Input(
                    "ranks", default="", multiline=True,
                    tooltip="Ranks of their own: 'pattern = rank' or 'pattern = rank : alpha', one a line. The last "
                    "one that fits a layer counts.",
                ),
                io.Combo.Input(
                    "compute", options=list(AdapterConfig.COMPUTE), default="model", advanced=True,
                    tooltip="Arithmetic of the adapters: the model's (bf16 on most cards) or fp32, which is slower. "
                    "Their weights are fp32 in any case.",
                ),
                io.Int.Input(
                    "lokr_factor", default=-1, min=-1, max=4096, advanced=True,
                    tooltip="Size of LoKr's smaller factor; -1 splits evenly, the smallest file. LoKr only.",
                ),
                io.Boolean.Input(
                    "lokr_decompose_both", default=False, advanced=True,
                    tooltip="Make LoKr's smaller factor low-rank too where the rank allows. LoKr only.",
                ),
            ],
            outputs=[FluxAdapterOptions.Output(display_name="adapter options")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, start_from: str = NO_FILE, **settings) -> float:
        return _path(start_from).stat().st_mtime if start_from != NO_FILE else 0.0

    @classmethod
    def execute(cls, start_from: str = NO_FILE, **settings) -> io.NodeOutput:
        start = str(_path(start_from)) if start_from != NO_FILE else ""
        return io.NodeOutput(AdapterConfig(start_from=start, **settings))


def _path(file: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", file))
