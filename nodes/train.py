from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data.cache import EmbedCache, LatentCache
from ..flux2_train.data.images import to_tensor
from ..flux2_train.evaluate.plots import loss_plot
from ..flux2_train.host.graph_types import ModelPatcher
from ..flux2_train.host.loading import files
from ..flux2_train.runs.prepare import new_trainer
from ..flux2_train.runs.resume import AUTO, NEW
from ..flux2_train.runs.session import train
from ..flux2_train.settings.recipes import RECIPES, Recipe, combined
from ..flux2_train.settings.training import NO_RECIPE, TrainingSettings
from ..flux2_train.train.preview_request import PreviewRequest
from . import fields
from .listener import TrainerListener
from .progress import NodeProgress
from .types import (
    CATEGORY,
    FluxAdapterOptions,
    FluxCheckpoints,
    FluxEmbeds,
    FluxLatents,
    FluxMemory,
    FluxObjective,
    FluxOptimizer,
    FluxPreservation,
    FluxSaveOptions,
    FluxTimesteps,
    FluxValidation,
    FluxValidationLoss,
)

WIRED = ("timesteps", "optimizer")  # inputs whose nodes a recipe fills in where they are wired


def _shown(recipe: Recipe) -> dict[str, dict]:
    """What web/recipes.js fills in: this node's widgets, and those of each option node by the input it is wired to."""
    wired = {name: fields.as_widgets(recipe.sections[name]) for name in WIRED if name in recipe.sections}
    return {"face": recipe.face, "wired": wired}


class LoraTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2LoraTrainer",
            display_name="LoRA Trainer",
            category=CATEGORY,
            description="Trains a LoRA on the very MODEL wired in and gives it on to the graph. The MODEL itself is "
            "not changed. The LoRA is saved in models/loras; plot, losses and report in output/flux2_train.",
            search_aliases=["train", "lora", "dreambooth", "finetune"],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.2 model to train on; use a base model, not a distilled one."),
                FluxEmbeds.Input("embeds", tooltip="Encoded captions: wire Cache Embeds."),
                FluxLatents.Input("latents", tooltip="Encoded images: wire Cache Latents."),
                *fields.inputs(TrainingSettings, "name", "steps", "rank", "learning_rate", "targets", "seed"),
                FluxAdapterOptions.Input(
                    "adapter", optional=True,
                    tooltip="Kind of adapter, layers, LoRA to start from: wire Adapter Options. Free is a plain LoRA.",
                ),
                fields.widget(
                    TrainingSettings, "recipe",
                    extra_dict={"recipes": {name: _shown(recipe) for name, recipe in RECIPES.items()}},
                ),
                FluxObjective.Input(
                    "objective", optional=True,
                    tooltip="Loss, guidance, references and alarms: wire Training Objective. Free is plain and good.",
                ),
                FluxTimesteps.Input(
                    "timesteps", optional=True,
                    tooltip="Which noise levels are trained on: wire Timesteps. Free is sigmoid with the linear shift.",
                ),
                FluxOptimizer.Input(
                    "optimizer", optional=True,
                    tooltip="Optimizer, schedule, clipping, moving average: wire Optimizer. Free is AdamW.",
                ),
                FluxPreservation.Input(
                    "preserve", optional=True,
                    tooltip="What 'preservation' keeps and how often: wire Preservation. Free is the class word.",
                ),
                FluxValidation.Input(
                    "validation", optional=True,
                    tooltip="Prompts to paint while it trains: wire Validation, and into Cache Embeds too. Free paints "
                    "none.",
                ),
                FluxValidationLoss.Input(
                    "validation_loss", optional=True,
                    tooltip="Held-out images, and how often the loss is measured: wire Validation Loss.",
                ),
                FluxSaveOptions.Input(
                    "save", optional=True,
                    tooltip="Format and precision of the file: wire Save Options. Free is ComfyUI's format in bf16.",
                ),
                FluxCheckpoints.Input(
                    "checkpoints", optional=True,
                    tooltip="When the run's state is saved and how often, and when to stop early: wire Checkpoints. "
                    "Free is every ten minutes and at the end.",
                ),
                *fields.inputs(
                    TrainingSettings, "preservation", "differential_guidance", "alpha", "epochs", "batch", "accumulate",
                    "offload",
                ),
                FluxMemory.Input(
                    "memory", optional=True,
                    tooltip="How memory is shared out in detail: wire Memory. Free leaves it to the planner.",
                ),
                fields.widget(TrainingSettings, "checkpointing"),
                io.Combo.Input(
                    "resume", options=[AUTO, NEW], default=AUTO, optional=True, advanced=True,
                    tooltip="'auto' goes on where the last run of this name was interrupted (Cancel, error, power "
                    "cut), and gives a finished one that is exactly the same. 'new' always begins anew.",
                ),
                *fields.inputs(TrainingSettings, "validation_items", "logs"),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora"),
                io.LossMap.Output(display_name="loss"),
                io.String.Output(display_name="saved file"),
                io.Image.Output(display_name="loss plot"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, embeds: EmbedCache, latents: LatentCache, recipe: str = NO_RECIPE,
        objective: dict | None = None, timesteps: dict | None = None, optimizer: dict | None = None,
        preserve: dict | None = None, validation: PreviewRequest | None = None, validation_loss: dict | None = None,
        resume: str = AUTO, **face,
    ) -> io.NodeOutput:  # fmt: skip
        sections = {**(objective or {}), **(timesteps or {}), **(optimizer or {}), **(preserve or {})}
        sections |= {"validation_loss": validation_loss["settings"]} if validation_loss else {}
        trainer = new_trainer(
            model, embeds, latents, TrainingSettings(**combined(recipe, face, sections)), previews=validation,
            held_out=validation_loss and validation_loss["data"],
        )  # fmt: skip
        listener = TrainerListener(trainer, NodeProgress(cls.hidden.unique_id, trainer.total))
        results = train(trainer, files.lora_folder(), files.run_folder(), listener, resume)
        listener.say(f"{results.lora_path.name}: {results.certificate}\n{listener.text}")
        plot = to_tensor(loss_plot(trainer.history, results.lora_path.stem))
        return io.NodeOutput(results.lora, {"loss": trainer.history.losses}, results.lora_path.name, plot)
