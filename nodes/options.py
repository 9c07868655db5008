"""The option nodes: each gives LoRA Trainer one wire of settings and needs no wire of its own."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data.images import to_tensor
from ..flux2_train.options import (
    EmaConfig,
    GuardConfig,
    GuidanceConfig,
    LossConfig,
    OptimizerConfig,
    PreservationConfig,
    TimestepConfig,
    numbers,
    rates,
)
from ..flux2_train.run.plot import times_plot
from .types import CATEGORY, FluxObjective, FluxOptimizer, FluxPreservation, FluxTimesteps


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
    def execute(cls, **v) -> io.NodeOutput:
        loss = LossConfig(v["loss"], v["huber_width"], v["huber_schedule"], v["wavelet_detail"], v["loss_min"],
                          v["loss_max"])  # fmt: skip
        guide = GuidanceConfig(v["guidance_max"], v["contrastive_guidance"], v["contrastive_schedule"],
                               v["contrastive_project"], v["true_cfg"], v["references"])  # fmt: skip
        guard = GuardConfig(v["bad_losses"], v["divergence"], v["stop_on_divergence"])
        return io.NodeOutput({"loss": loss, "guide": guide, "guidance": v["guidance"], "guard": guard})


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
        )  # fmt: skip

    @classmethod
    def execute(cls, **v) -> io.NodeOutput:
        config = TimestepConfig(
            v["distribution"], v["sigmoid_scale"], v["sigmoid_mean"], v["sigmoid_std"], v["beta_alpha"],
            v["beta_beta"], v["mode_scale"], numbers(v["values"], "values"), v["shift"], v["shift_factor"],
            v["shift_steps"], v["bias"], v["min"], v["max"], v["strata"], v["weighting"],
            numbers(v["weights"], "weights"),
        )  # fmt: skip
        plot = times_plot(config, (v["preview_resolution"] // 16) ** 2)
        return io.NodeOutput({"timesteps": config}, to_tensor(plot), ui={"text": [_summary(config)]})


def _summary(config: TimestepConfig) -> str:
    weighting = "measured" if config.distribution == "weighted" else config.weighting
    return f"{config.distribution}, {config.bias}, {config.least:g} to {config.most:g}, weighting {weighting}"


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
    def execute(cls, **v) -> io.NodeOutput:
        optimizer = OptimizerConfig(
            v["optimizer"], numbers(v["betas"], "betas"), v["eps"], v["weight_decay"], v["max_grad_norm"],
            v["schedule"], v["warmup"], v["end"], v["cycles"], v["power"], rates(v["block_rates"]),
        )  # fmt: skip
        ema = EmaConfig(v["ema_decay"], v["ema_warmup"], v["ema_export"], v["ema_preview"])
        return io.NodeOutput({"optimizer": optimizer, "ema": ema})


class Preservation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Preservation",
            display_name="Preservation",
            category=CATEGORY,
            description="What stays as the base model has it; LoRA Trainer's 'preservation' says how strongly.",
            search_aliases=["dop", "differential output preservation", "prior", "regularisation"],
            inputs=[
                io.Combo.Input(
                    "kind", options=list(PreservationConfig.KINDS), default="class",
                    tooltip="class keeps what the class word means (differential output preservation). blank keeps "
                    "what comes without a caption, and needs neither trigger nor class word.",
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=1_000_000,
                    tooltip="Preserve at every n-th step only: 2 saves a third of the time and keeps somewhat less.",
                ),
                io.Boolean.Input(
                    "together", default=False, advanced=True,
                    tooltip="Run both passes as one batch: faster on cards with room, but twice the activations.",
                ),
                io.Float.Input(
                    "outside_mask", default=0.0, min=0.0, max=1000.0, step=0.1, advanced=True,
                    tooltip="Keeps the base model's prediction where an image's mask is dark, this strongly. 0 is off, "
                    "0.5 is AI Toolkit's. Needs masks on the data set; one more forward pass.",
                ),
            ],
            outputs=[FluxPreservation.Output(display_name="preservation")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **v) -> io.NodeOutput:
        return io.NodeOutput({"preserve": PreservationConfig(**v)})
