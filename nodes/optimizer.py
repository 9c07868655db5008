"""Optimizer: how gradients become steps."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.options import EmaConfig, OptimizerConfig
from ..flux2_train.section import numbers, rates
from .fields import from_widgets
from .types import CATEGORY, FluxOptimizer

NAMES = {"name": "optimizer"}
EMA = {"decay": "ema_decay", "warmup": "ema_warmup", "export": "ema_export", "preview": "ema_preview"}


class Optimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Optimizer",
            display_name="Optimizer",
            category=CATEGORY,
            description="How gradients become steps: optimizer, learning rate schedule, clipping, moving average.",
            search_aliases=["adamw", "prodigy", "scheduler", "warmup", "ema"],
            inputs=[
                io.Combo.Input(
                    "optimizer", options=list(OptimizerConfig.NAMES), default="adamw",
                    tooltip="adamw needs nothing. adamw8bit saves memory (bitsandbytes, CUDA). prodigy finds the rate "
                    "itself: set learning_rate to 1. lion wants a third to a tenth of adamw's rate.",
                ),
                io.Combo.Input(
                    "schedule", options=list(OptimizerConfig.SCHEDULES), default="constant",
                    tooltip="How the learning rate falls over the run. constant suits most; cosine and rex end calmer.",
                ),
                io.Float.Input(
                    "warmup", default=0.0, min=0.0, max=1_000_000.0, step=0.01, round=False,
                    tooltip="The learning rate rises over this part of all steps (0.05), or from 1 on this many steps "
                    "(50). Useful with high rates and prodigy.",
                ),
                io.Float.Input(
                    "weight_decay", default=0.01, min=0.0, max=10.0, step=0.001, round=False,
                    tooltip="Pulls weights towards zero against overfitting. 0.01 is usual, AI Toolkit uses 0.0001.",
                ),
                io.Float.Input(
                    "max_grad_norm", default=1.0, min=0.0, max=1e6, step=0.1, round=False, advanced=True,
                    tooltip="Gradients longer than this are shortened to it, which tames outliers. 0 is off.",
                ),
                io.Float.Input(
                    "end", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Where the schedule ends, as a part of the learning rate; constant has no end.",
                ),
                io.Int.Input(
                    "cycles", default=1, min=1, max=1000, advanced=True,
                    tooltip="For cosine with restarts: how often the rate starts anew at its full height.",
                ),
                io.Float.Input(
                    "power", default=2.0, min=0.1, max=10.0, step=0.1, advanced=True,
                    tooltip="For polynomial: 1 falls in a straight line, larger falls early and ends flat.",
                ),
                io.String.Input(
                    "betas", default="", advanced=True,
                    tooltip="Decay of the first and second moment, such as 0.9, 0.95. Empty takes the optimizer's own; "
                    "adafactor has none.",
                ),
                io.Float.Input(
                    "eps", default=0.0, min=0.0, max=1.0, step=1e-8, round=False, advanced=True,
                    tooltip="Added to the divisor of each step. 0 takes the optimizer's own; lion and adafactor have "
                    "none.",
                ),
                io.String.Input(
                    "block_rates", default="", advanced=True,
                    tooltip="Learning rate factors by layer name (regular expressions), such as double_blocks=0.5, "
                    "single_blocks.7=0. The first that matches counts.",
                ),
                io.Float.Input(
                    "ema_decay", default=0.0, min=0.0, max=0.999999, step=0.001, round=False, advanced=True,
                    tooltip="Keeps a running mean of the weights, which smooths the result: 0.99 over about a hundred "
                    "steps. 0 is off.",
                ),
                io.Int.Input(
                    "ema_warmup", default=0, min=0, max=1_000_000, advanced=True,
                    tooltip="Until this step the running mean just follows the weights; skips a wild start.",
                ),
                io.Boolean.Input(
                    "ema_export", default=True, advanced=True,
                    tooltip="Saves the running mean as the LoRA; off saves the last weights.",
                ),
                io.Boolean.Input(
                    "ema_preview", default=True, advanced=True,
                    tooltip="Measures validation and paints previews with the running mean; off with the last weights.",
                ),
            ],
            outputs=[FluxOptimizer.Output(display_name="optimizer")],
        )  # fmt: skip

    @classmethod
    def execute(cls, betas: str, block_rates: str, **widgets) -> io.NodeOutput:
        widgets |= {"betas": numbers(betas, "betas"), "block_rates": rates(block_rates)}
        optimizer, ema = from_widgets(OptimizerConfig, widgets, NAMES), from_widgets(EmaConfig, widgets, EMA)
        return io.NodeOutput({"optimizer": optimizer, "ema": ema})
