from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.adapters.targets import PRESETS
from ..flux2_train.config import TrainConfig
from ..flux2_train.data.images import to_tensor
from ..flux2_train.host import files
from ..flux2_train.memory.options import OFFLOADS
from ..flux2_train.recipes import NONE, RECIPES, Recipe, settings
from ..flux2_train.run.plot import loss_plot
from ..flux2_train.run.resume import AUTO, NEW
from ..flux2_train.run.session import train
from ..flux2_train.run.trainer import Trainer
from . import optimizer as optimizer_node
from . import timesteps as timesteps_node
from .fields import to_widgets
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

LOGS = {
    "csv": (), "csv and TensorBoard": ("tensorboard",), "csv and Weights & Biases": ("wandb",),
    "csv, TensorBoard and Weights & Biases": ("tensorboard", "wandb"),
}  # fmt: skip
# Option nodes that a recipe fills in when they are wired: by input, the names of that node's widgets.
WIRED = {"timesteps": timesteps_node.NAMES, "optimizer": optimizer_node.NAMES}


def _shown(recipe: Recipe) -> dict[str, dict]:
    """What web/recipes.js fills in: widgets of this node, and of the option nodes by the input they are wired to."""
    wired = {name: to_widgets(recipe.sections[name], WIRED[name]) for name in WIRED if name in recipe.sections}
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
                io.String.Input(
                    "name", default="flux2_lora",
                    tooltip="File name of the LoRA. A number is added if that name is taken; nothing is overwritten.",
                ),
                io.Int.Input(
                    "steps", default=1000, min=0, max=1_000_000,
                    tooltip="How many optimizer steps. 500 to 2000 suit most subjects. 0 counts epochs instead.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=1024,
                    tooltip="Capacity of the LoRA: 8 to 16 for a style or a person, 32 and more for many things. "
                    "File size and memory grow with it.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-7, max=1.0, step=1e-6, round=False,
                    tooltip="How far each step goes. 1e-4 is good for most; halve it if pictures burn out. On nano use "
                    "about 1e-3.",
                ),
                io.Combo.Input(
                    "targets", options=list(PRESETS), default="all",
                    tooltip="Which layers learn. 'all' is best; 'attention' and 'mlp' leave out layers of the double "
                    "blocks, 'tiny' trains qkv only and makes the smallest file.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=True,
                    tooltip="Fixes the start, the order and the noise: the same seed gives the same LoRA, "
                    "on CUDA up to rounding.",
                ),
                FluxAdapterOptions.Input(
                    "adapter", optional=True,
                    tooltip="Kind of adapter, layers, LoRA to start from: wire Adapter Options. Free is a plain LoRA.",
                ),
                io.Combo.Input(
                    "recipe", options=list(RECIPES), default=NONE, optional=True,
                    tooltip="Fills in the values for a purpose, or as another trainer documents them: this node's, and "
                    "those of Timesteps and Optimizer nodes wired in. Change any of them afterwards.",
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
                io.Float.Input(
                    "preservation", default=0.0, min=0.0, max=10.0, step=0.1, optional=True,
                    tooltip="Differential output preservation: keeps what the class word means while the trigger is "
                    "learned. 0 is off, 1 is strong. Needs trigger and class word on Dataset Folder; a step takes "
                    "2.3 times as long and no more memory worth mentioning.",
                ),
                io.Float.Input(
                    "differential_guidance", default=1.0, min=0.1, max=10.0, step=0.1, optional=True,
                    tooltip="Pushes past the target by this factor. 1 is off, 3 is usual. It multiplies mse's "
                    "gradient: clipping sets in earlier, and preservation weighs that much less; raise it alike.",
                ),
                io.Float.Input(
                    "alpha", default=0.0, min=0.0, max=1024.0, step=1.0, optional=True, advanced=True,
                    tooltip="The LoRA's scale is alpha / rank. 0 means equal to rank, scale 1, and is a good value.",
                ),
                io.Int.Input(
                    "epochs", default=10, min=0, max=100_000, optional=True, advanced=True,
                    tooltip="How often the whole data set is seen; counts only when steps is 0.",
                ),
                io.Int.Input(
                    "batch", default=1, min=1, max=256, optional=True, advanced=True,
                    tooltip="Images per step. More is steadier and needs more memory; 1 is right for small sets.",
                ),
                io.Int.Input(
                    "accumulate", default=1, min=1, max=1024, optional=True, advanced=True,
                    tooltip="Batches per step: the effect of a batch that many times as large in the memory of one, "
                    "at that many times the time per step.",
                ),
                io.Combo.Input(
                    "offload", options=list(OFFLOADS), default=OFFLOADS[0], optional=True,
                    tooltip="Keeps weights of the base in host memory and fetches them when they are used: 'auto' as "
                    "many as it takes to fit, 'all' for the least memory, 'off' none. Changes speed, never the result.",
                ),
                FluxMemory.Input(
                    "memory", optional=True,
                    tooltip="How memory is shared out in detail: wire Memory. Free leaves it to the planner.",
                ),
                io.Boolean.Input(
                    "checkpointing", default=True, optional=True, advanced=True,
                    tooltip="Recompute each block instead of keeping its activations: far less memory, about a third "
                    "more time. Turn it off only if the card has room to spare.",
                ),
                io.Combo.Input(
                    "resume", options=[AUTO, NEW], default=AUTO, optional=True, advanced=True,
                    tooltip="'auto' goes on where the last run of this name was interrupted (Cancel, error, power "
                    "cut), and gives a finished one that is exactly the same. 'new' always begins anew.",
                ),
                io.Int.Input(
                    "validation_items", default=4, min=0, max=1000, optional=True, advanced=True,
                    tooltip="On how many images the loss is measured at fixed noise before and after training, which "
                    "tells whether it fell. 0 turns it off.",
                ),
                io.Combo.Input(
                    "logs", options=list(LOGS), default="csv", optional=True, advanced=True,
                    tooltip="Where losses and previews are logged beside loss.csv: TensorBoard (in the run's folder) "
                    "and Weights & Biases, whose packages must be installed.",
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
        cls, model, embeds, latents, recipe=NONE, objective=None, timesteps=None, optimizer=None, preserve=None,
        validation=None, validation_loss=None, logs="csv", resume=AUTO, **face,
    ) -> io.NodeOutput:  # fmt: skip
        sections = {**(objective or {}), **(timesteps or {}), **(optimizer or {}), **(preserve or {})}
        sections |= {"logs": LOGS[logs]} | ({"held_out": validation_loss["config"]} if validation_loss else {})
        trainer = Trainer(
            model, embeds, latents, TrainConfig(**settings(recipe, face, sections)), validation=validation,
            held_out=validation_loss and validation_loss["data"],
        )  # fmt: skip
        listener = TrainerListener(trainer, NodeProgress(cls.hidden.unique_id, trainer.total))
        results = train(trainer, files.lora_folder(), files.run_folder(), listener, resume)
        listener.say(f"{results.lora_path.name}: {results.certificate}\n{listener.text}")
        plot = to_tensor(loss_plot(trainer.history, results.lora_path.stem))
        return io.NodeOutput(results.lora, {"loss": trainer.history.losses}, results.lora_path.name, plot)
