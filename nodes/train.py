from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data.cache import EmbedCache, LatentCache
from ..flux2_train.data.images import to_tensor
from ..flux2_train.evaluate.plots import loss_plot
from ..flux2_train.flavours import FLAVOURS
from ..flux2_train.host.graph_types import ModelPatcher
from ..flux2_train.host.loading import files
from ..flux2_train.runs.prepare import new_trainer
from ..flux2_train.runs.resume import AUTO, NEW
from ..flux2_train.runs.session import train
from ..flux2_train.runs.several.training import count_of, losses_of, plot_of
from ..flux2_train.settings.recipes import RECIPES, Recipe, combined, face_on
from ..flux2_train.settings.training import NO_RECIPE, TrainingSettings
from . import fields
from .browser.shown import keep
from .listener import TrainerListener, ending_as_interrupted
from .options import gathered, socket, take_earlier
from .progress import NodeProgress
from .several.training import train_in
from .types import TRAIN, FluxEmbeds, FluxLatents, FluxOptions

# Sockets of earlier versions, one for each option node: what is wired there is taken as if it were in 'options'.
EARLIER = (
    "adapter", "objective", "timesteps", "optimizer", "preserve", "validation", "validation_loss", "save",
    "checkpoints", "memory",
)  # fmt: skip
MOST = 20  # wires into 'options': each of the ten option nodes, and room for more
FILLED = {"timesteps": "Flux2Timesteps", "optimizer": "Flux2Optimizer"}  # option nodes that a recipe fills in


def _shown(recipe: Recipe) -> dict[str, dict]:
    """What web/recipes.js fills in: this node's widgets, and those of option nodes wired into it, by their type."""
    wired = {node: fields.as_widgets(recipe.sections[name]) for name, node in FILLED.items() if name in recipe.sections}
    own = {name: face_on(recipe, name) for name, row in FLAVOURS.items() if row.recipe}
    return {"face": recipe.face, "of_flavour": own, "wired": wired}


class LoraTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2LoraTrainer",
            display_name="LoRA Trainer",
            category=TRAIN,
            description="Trains a LoRA on the very MODEL wired in and gives it on to the graph. The MODEL itself is "
            "not changed. The LoRA is saved in models/loras; plot, losses and report in output/flux2_train.",
            search_aliases=["train lora", "lora training", "flux2 train", "dreambooth", "finetune"],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.2 model to train on; use a base model, not a distilled one."),
                FluxEmbeds.Input("embeds", tooltip="Encoded captions: wire Cache Embeds."),
                FluxLatents.Input("latents", tooltip="Encoded images: wire Cache Latents."),
                *fields.inputs(TrainingSettings, "name", "steps", "rank", "learning_rate", "targets", "seed"),
                fields.widget(
                    TrainingSettings, "recipe",
                    extra_dict={"recipes": {name: _shown(recipe) for name, recipe in RECIPES.items()}},
                ),
                *fields.inputs(
                    TrainingSettings, "preservation", "differential_guidance", "alpha", "epochs", "batch", "accumulate",
                    "offload",
                ),
                fields.widget(TrainingSettings, "checkpointing"),
                io.Combo.Input(
                    "resume", options=[AUTO, NEW], default=AUTO, optional=True, advanced=True,
                    tooltip="'auto' goes on where the last run of this name was interrupted (Cancel, error, power "
                    "cut), or has finished with fewer steps, and gives a finished one that is exactly the same. 'new' "
                    "always begins anew.",
                ),
                *fields.inputs(
                    TrainingSettings, "validation_items", "logs", "processes", "compile", "attention", "speed"
                ),
                socket(
                    FluxOptions, MOST,
                    "Rarer choices, each kind in a node of its own: wire Validation (previews), Validation Loss, "
                    "Preservation, Optimizer, Timesteps, Training Objective, Adapter Options, Save Options, "
                    "Checkpoints or Memory. Free takes the defaults.",
                ),
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
        resume: str = AUTO, options: dict | None = None, **face,
    ) -> io.NodeOutput:  # fmt: skip
        sections = gathered("LoRA Trainer", {**(options or {}), **take_earlier(face, EARLIER)})
        previews, held_out = sections.pop("validation", None), sections.pop("held_out", None)
        config = TrainingSettings(**combined(recipe, face, sections))
        count = count_of(config)
        if count > 1:
            node = cls.hidden.unique_id
            results, text = train_in(count, node, model, (embeds, latents), config, previews, held_out, resume)
            losses = {"loss": losses_of(results.folder)}
            plot, shown = plot_of(results.folder), keep(node, text)
            return io.NodeOutput(results.lora, losses, results.lora_path.name, plot, ui=shown)
        trainer = new_trainer(model, embeds, latents, config, previews=previews, held_out=held_out)
        listener = TrainerListener(trainer, NodeProgress(cls.hidden.unique_id, trainer.total))
        with ending_as_interrupted(), listener.saying_how_it_ends():
            results = train(trainer, files.lora_folder(), files.run_folder(), listener, resume)
        plot = to_tensor(loss_plot(trainer.history, results.lora_path.stem))
        shown = keep(cls.hidden.unique_id, listener.finished(results))
        return io.NodeOutput(results.lora, {"loss": trainer.history.losses}, results.lora_path.name, plot, ui=shown)
