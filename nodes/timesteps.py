"""Timesteps: which noise levels are trained on and how much each counts."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..flux2_train.data.images import to_tensor
from ..flux2_train.evaluate.plots import times_plot
from ..flux2_train.settings.timesteps import TimestepSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions


class Timesteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Timesteps",
            display_name="Timesteps",
            category=OPTIONS,
            description="Which noise levels are trained on and how much each counts; 1 is pure noise. Shows a plot.",
            search_aliases=["sigma", "noise schedule", "shift", "weighting"],
            inputs=[
                *fields.inputs(TimestepSettings),
                io.Int.Input(
                    "preview_resolution", default=1024, min=64, max=4096, step=16, advanced=True,
                    tooltip="Image size in pixels that the plot is drawn for; it moves the shift, nothing else.",
                ),
            ],
            outputs=[FluxOptions.Output(display_name="timesteps"), io.Image.Output(display_name="plot")],
            is_output_node=True,  # the plot can be queued without a training run
        )  # fmt: skip

    @classmethod
    def execute(cls, preview_resolution: int, **widgets) -> io.NodeOutput:
        settings = TimestepSettings(**widgets)
        plot = to_tensor(times_plot(settings, (preview_resolution // 16) ** 2))
        return io.NodeOutput(Options("Timesteps", {"timesteps": settings}), plot, ui=ui.PreviewImage(plot, cls=cls))
