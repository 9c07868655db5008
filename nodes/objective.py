"""Training Objective: how wrong a prediction is, and towards what it is pulled."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.options import GuardConfig, GuidanceConfig, LossConfig
from .fields import from_widgets
from .types import CATEGORY, FluxObjective

LOSS = {
    "kind": "loss", "width": "huber_width", "width_schedule": "huber_schedule", "detail": "wavelet_detail",
    "least": "loss_min", "most": "loss_max",
}  # fmt: skip
GUIDE = {"most": "guidance_max", "contrastive": "contrastive_guidance", "cfg": "true_cfg"}


class TrainingObjective(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2TrainingObjective",
            display_name="Training Objective",
            category=CATEGORY,
            description="How wrong a prediction is and towards what it is pulled: loss, guidance, references, alarms.",
            search_aliases=["loss", "huber", "contrastive guidance", "cfg"],
            inputs=[
                io.Combo.Input(
                    "loss", options=list(LossConfig.KINDS), default="mse",
                    tooltip="mse is what the model was made with. mae and huber forgive outliers (bad images); wavelet "
                    "stresses fine detail.",
                ),
                io.Float.Input(
                    "huber_width", default=0.1, min=1e-4, max=10.0, step=0.01, round=False, advanced=True,
                    tooltip="For huber and smooth_l1: errors below it count squared, above it linearly. 0.1 is usual.",
                ),
                io.Combo.Input(
                    "huber_schedule", options=list(LossConfig.WIDTH_SCHEDULES), default="constant", advanced=True,
                    tooltip="How huber_width follows the noise: constant; exponential narrows it towards pure noise, "
                    "snr widens it.",
                ),
                io.Float.Input(
                    "wavelet_detail", default=2.0, min=0.0, max=100.0, step=0.1, advanced=True,
                    tooltip="For wavelet: weight of the three detail bands beside the smooth one. 1 is exactly mse.",
                ),
                io.Float.Input(
                    "loss_min", default=0.0, min=0.0, max=1000.0, step=0.01, round=False, advanced=True,
                    tooltip="A sample whose loss is below this teaches nothing, which slows memorising down. 0 is off.",
                ),
                io.Float.Input(
                    "loss_max", default=0.0, min=0.0, max=1000.0, step=0.01, round=False, advanced=True,
                    tooltip="A sample whose loss is above this teaches nothing: broken images cannot hurt. 0 is off.",
                ),
                io.Float.Input(
                    "guidance", default=1.0, min=0.0, max=100.0, step=0.1,
                    tooltip="The guidance that dev is told while it trains; 1 is usual and samples well at 3 to 4. "
                    "klein and nano have no such input and ignore it.",
                ),
                io.Float.Input(
                    "guidance_max", default=0.0, min=0.0, max=100.0, step=0.1, advanced=True,
                    tooltip="Draws dev's guidance for each sample between 'guidance' and this. 0 keeps it constant.",
                ),
                io.Float.Input(
                    "contrastive_guidance", default=1.0, min=0.0, max=100.0, step=0.1, advanced=True,
                    tooltip="Moves the target this many times as far from the prediction without a caption, so that "
                    "guidance is built in. 1 is off, 3 to 4 usual. One more forward pass per step.",
                ),
                io.Combo.Input(
                    "contrastive_schedule", options=list(GuidanceConfig.SCHEDULES), default="constant", advanced=True,
                    tooltip="sigma lets contrastive guidance fade where there is little noise, which it would amplify.",
                ),
                io.Boolean.Input(
                    "contrastive_project", default=False, advanced=True,
                    tooltip="Scales the prediction without a caption to fit the target first (CFG-Zero), which calms "
                    "contrastive guidance at high noise.",
                ),
                io.Float.Input(
                    "true_cfg", default=1.0, min=0.0, max=100.0, step=0.1, advanced=True,
                    tooltip="Trains the mix of two predictions, with and without caption, that klein base samples with "
                    "at this scale. 1 is off, 4 what it samples at. Steps take twice the time and memory.",
                ),
                io.Combo.Input(
                    "references", options=list(GuidanceConfig.REFERENCES), default="index", advanced=True,
                    tooltip="index shows reference images at the image's own time, as ComfyUI samples. "
                    "index_timestep_zero shows them as clean, as SimpleTuner trains; LoRA Apply then samples so too.",
                ),
                io.Int.Input(
                    "bad_losses", default=5, min=1, max=1_000_000, advanced=True,
                    tooltip="Steps whose loss is no number are left out; this many in a row stop the run.",
                ),
                io.Float.Input(
                    "divergence", default=3.0, min=0.0, max=1e6, step=0.5, advanced=True,
                    tooltip="Warns when the mean loss of 20 steps is this many times its lowest so far. 0 is off.",
                ),
                io.Boolean.Input(
                    "stop_on_divergence", default=False, advanced=True,
                    tooltip="Ends the run at that warning instead of going on; what was learned is saved.",
                ),
            ],
            outputs=[FluxObjective.Output(display_name="objective")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        loss, guide = from_widgets(LossConfig, widgets, LOSS), from_widgets(GuidanceConfig, widgets, GUIDE)
        guard = from_widgets(GuardConfig, widgets)
        return io.NodeOutput({"loss": loss, "guide": guide, "guidance": widgets["guidance"], "guard": guard})
