"""Optimizer: how gradients become steps."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings import base
from ..flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions

LATER = ("other", "other_arguments")  # behind the others: saved graphs hold the values of widgets in their order
_SHOWN_FIRST = [name for name in base.names(OptimizerSettings) if name not in LATER]
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
            inputs=[
                *fields.inputs(OptimizerSettings, *_SHOWN_FIRST),
                *fields.inputs(EmaSettings),
                *fields.inputs(OptimizerSettings, *LATER),
            ],
            outputs=[FluxOptions.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        sections = {name: fields.taken(kind, widgets) for name, kind in SECTIONS.items()}
        return io.NodeOutput(Options("Optimizer", sections))
