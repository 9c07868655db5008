"""Optimizer: how gradients become steps."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions

SECTIONS = {"optimizer": OptimizerSettings, "ema": EmaSettings}


class Optimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Optimizer",
            display_name="Optimizer",
            category=OPTIONS,
            description="How gradients become steps: optimizer, learning rate schedule, clipping, moving average.",
            search_aliases=["adamw", "prodigy", "scheduler", "warmup", "ema"],
            inputs=[widget for kind in SECTIONS.values() for widget in fields.inputs(kind)],
            outputs=[FluxOptions.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        sections = {name: fields.taken(kind, widgets) for name, kind in SECTIONS.items()}
        return io.NodeOutput(Options("Optimizer", sections))
