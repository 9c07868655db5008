from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.options import CheckpointConfig
from .types import CATEGORY, FluxCheckpoints


class Checkpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Checkpoints",
            display_name="Checkpoints",
            category=CATEGORY,
            description="When LoRA Trainer saves the whole state of a run, from which it goes on after an interruption "
            "as if nothing had happened, and whether it stops early.",
            search_aliases=["resume", "save every", "early stopping", "snapshot"],
            inputs=[
                io.Int.Input(
                    "every_steps", default=0, min=0, max=1_000_000,
                    tooltip="Save every that many steps. 0 counts no steps.",
                ),
                io.Float.Input(
                    "every_minutes", default=10.0, min=0.0, max=10_000.0, step=1.0,
                    tooltip="Save every that many minutes, which is the most that a power cut can take. 0 counts none.",
                ),
                io.Int.Input(
                    "every_epochs", default=0, min=0, max=100_000,
                    tooltip="Save every that many times the whole data set was seen. 0 counts no epochs.",
                ),
                io.Int.Input(
                    "keep", default=2, min=0, max=10_000,
                    tooltip="How many of the last ones stay on disk; each is about three times the adapter in fp32. 0 "
                    "saves none: an interrupted run then keeps its LoRA only.",
                ),
                io.Boolean.Input(
                    "keep_best", default=True,
                    tooltip="Also keep the one with the lowest validation loss, whenever it was.",
                ),
                io.Int.Input(
                    "patience", default=0, min=0, max=100_000,
                    tooltip="Stop after that many validations without a lower loss and give the best LoRA. Needs a "
                    "validation every some steps. 0 never stops early.",
                ),
            ],
            outputs=[FluxCheckpoints.Output(display_name="checkpoints")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(CheckpointConfig(**settings))
