"""A trainer with all that a run does between its steps."""

from __future__ import annotations

from accelerate import Accelerator

from ..data.cache import EmbedCache, LatentCache
from ..evaluate.evaluation import Evaluation
from ..settings.training import TrainingSettings
from ..train.preview_request import PreviewRequest
from ..train.trainer import Trainer


def new_trainer(
    model,
    embeds: EmbedCache,
    latents: LatentCache,
    config: TrainingSettings,
    accelerator: Accelerator | None = None,
    validation: PreviewRequest | None = None,
    held_out: tuple[EmbedCache, LatentCache] | None = None,
) -> Trainer:
    """See ``Trainer``, which this one is; it also measures validation losses and paints previews as it was asked to."""
    trainer = Trainer(model, embeds, latents, config, accelerator, validation, held_out)
    trainer.between_steps = Evaluation(trainer, embeds.embeds)
    return trainer
