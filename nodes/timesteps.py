"""Timesteps: which noise levels are trained on and how much each counts."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..flux2_train.data.images import to_tensor
from ..flux2_train.options import TimestepConfig
from ..flux2_train.run.plot import times_plot
from ..flux2_train.section import numbers
from .fields import from_widgets
from .types import CATEGORY, FluxTimesteps

NAMES = {
    "scale": "sigmoid_scale", "mean": "sigmoid_mean", "std": "sigmoid_std", "alpha": "beta_alpha", "beta": "beta_beta",
    "least": "min", "most": "max",
}  # fmt: skip


class Timesteps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Timesteps",
            display_name="Timesteps",
            category=CATEGORY,
            description="Which noise levels are trained on and how much each counts; 1 is pure noise. Shows a plot.",
            search_aliases=["sigma", "noise schedule", "shift", "weighting"],
            inputs=[
                io.Combo.Input(
                    "distribution", options=list(TimestepConfig.DISTRIBUTIONS), default="sigmoid",
                    tooltip="sigmoid stays in the middle and suits most. weighted is AI Toolkit's: all times alike, "
                    "each counting as its measured curve says. list and round robin use the times in 'values'.",
                ),
                io.Combo.Input(
                    "shift", options=list(TimestepConfig.SHIFTS), default="linear",
                    tooltip="Moves times towards noise: linear by image size (musubi's flux2_shift), empirical as "
                    "FLUX.2 is sampled, constant by shift_factor. weighted and lists are never shifted.",
                ),
                io.Combo.Input(
                    "bias", options=list(TimestepConfig.BIASES), default="balanced",
                    tooltip="More draws at high noise teach layout and content, at low noise texture and style.",
                ),
                io.Float.Input(
                    "min", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="No times below this are drawn; the others keep their proportions. 0 is no limit.",
                ),
                io.Float.Input(
                    "max", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="No times above this are drawn; the others keep their proportions. 1 is no limit.",
                ),
                io.Combo.Input(
                    "weighting", options=list(TimestepConfig.WEIGHTINGS), default="none",
                    tooltip="What a sample's loss counts by its time. none is right for velocity; sigma_sqrt stresses "
                    "low noise very strongly, bell the middle, table uses 'weights'.",
                ),
                io.Int.Input(
                    "strata", default=0, min=0, max=100_000, advanced=True,
                    tooltip="Splits the distribution into this many parts and visits each once per round: steadier "
                    "than chance on small sets. 0 is off, 10 to 50 are useful.",
                ),
                io.Float.Input(
                    "sigmoid_scale", default=1.0, min=0.01, max=100.0, step=0.05, advanced=True,
                    tooltip="For sigmoid: above 1 spreads times towards both ends, below 1 gathers them.",
                ),
                io.Float.Input(
                    "sigmoid_mean", default=0.0, min=-20.0, max=20.0, step=0.05, advanced=True,
                    tooltip="For sigmoid: above 0 moves its middle towards noise, below 0 away from it.",
                ),
                io.Float.Input(
                    "sigmoid_std", default=1.0, min=0.01, max=100.0, step=0.05, advanced=True,
                    tooltip="For sigmoid: width of the normal distribution below it; 1 is usual.",
                ),
                io.Float.Input(
                    "beta_alpha", default=2.0, min=0.01, max=1000.0, step=0.1, advanced=True,
                    tooltip="For beta: larger moves times towards noise; equal to beta_beta is symmetric.",
                ),
                io.Float.Input(
                    "beta_beta", default=2.0, min=0.01, max=1000.0, step=0.1, advanced=True,
                    tooltip="For beta: larger moves times away from noise; equal to beta_alpha is symmetric.",
                ),
                io.Float.Input(
                    "mode_scale", default=1.29, min=-1.0, max=1.75, step=0.01, advanced=True,
                    tooltip="For mode: larger gathers times more in the middle; below 0 at both ends.",
                ),
                io.Float.Input(
                    "shift_factor", default=3.0, min=0.01, max=100.0, step=0.1, advanced=True,
                    tooltip="For the constant shift: 3 is SimpleTuner's, 1 none; FLUX.2 samples at 5 to 10.",
                ),
                io.Int.Input(
                    "shift_steps", default=20, min=1, max=1000, advanced=True,
                    tooltip="For the empirical shift: how many steps you sample with; 4 for distilled klein.",
                ),
                io.String.Input(
                    "values", default="", advanced=True,
                    tooltip="For list and round robin: times such as 1, 0.75, 0.5, 0.25. For curve: heights of the "
                    "density at equal distances from t = 0 to 1, such as 0, 1, 3.",
                ),
                io.String.Input(
                    "weights", default="", advanced=True,
                    tooltip="For weighting table: weights at equal distances from t = 0 to 1, such as 0.5, 1, 1.5.",
                ),
                io.Int.Input(
                    "preview_resolution", default=1024, min=64, max=4096, step=16, advanced=True,
                    tooltip="Image size in pixels that the plot is drawn for; it moves the shift, nothing else.",
                ),
            ],
            outputs=[FluxTimesteps.Output(display_name="timesteps"), io.Image.Output(display_name="plot")],
            is_output_node=True,  # so that the plot can be had without a training run
        )  # fmt: skip

    @classmethod
    def execute(cls, preview_resolution: int, **widgets) -> io.NodeOutput:
        for name in ("values", "weights"):
            widgets[name] = numbers(widgets[name], name)
        config = from_widgets(TimestepConfig, widgets, NAMES)
        plot = to_tensor(times_plot(config, (preview_resolution // 16) ** 2))
        return io.NodeOutput({"timesteps": config}, plot, ui=ui.PreviewImage(plot, cls=cls))
