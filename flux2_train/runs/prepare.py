"""Makes a trainer that also does what a run does between its steps."""

from __future__ import annotations

from accelerate import Accelerator

from ..data.cache import EmbedCache, LatentCache
from ..evaluate.evaluation import Evaluation
from ..host.graph_types import ModelPatcher
from ..settings.training import TrainingSettings
from ..train.preview_request import PreviewRequest
from ..train.trainer import Trainer


def new_trainer(
    model: ModelPatcher,
    embeds: EmbedCache,
    latents: LatentCache,
    config: TrainingSettings,
    accelerator: Accelerator | None = None,
    previews: PreviewRequest | None = None,
    held_out: tuple[EmbedCache, LatentCache] | None = None,
) -> Trainer:
    """A ``Trainer`` that also measures validation losses and paints previews, as its settings say."""
    trainer = Trainer(model, embeds, latents, config, accelerator, previews, held_out)
    trainer.between_steps = Evaluation(trainer, embeds.embeds)
    return trainer
