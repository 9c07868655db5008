"""Jobs from graphs, and what a job names: its data set."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path

from ..data.dataset import Dataset
from ..data.folder import Report, read_folder
from ..data.index import Index
from ..host.describe import describe
from ..host.loading import files
from ..settings.dataset import DatasetSettings
from ..settings.job import Job
from ..settings.previews import PreviewSettings
from ..train.trainer import Trainer

OF_VALIDATION = "Validation's"  # begins what is unknown of previews, which training does not depend on


def job_of(trainer: Trainer, references: tuple[tuple[Path, ...], ...] = ()) -> Job:
    """The job that a graph's trainer does, with what no file can say named in it.

    ``references`` are the files of the reference images of each prompt of its validation.
    """
    chosen, unknown = describe(trainer.model, trainer.text_encoder, trainer.vae)
    previews, more = _previews(trainer, references) if trainer.validation else (None, ())
    unknown += more
    if not trainer.dataset.requests:
        unknown += ("the data set was not read from folders",)
    embeds, latents = trainer.encoding
    return Job(
        trainer.dataset.requests,
        model=chosen,
        embeds=embeds,
        latents=latents,
        training=trainer.config,
        previews=previews,
        held_out=trainer.held_out_requests,
        unknown=unknown,
    )


def _previews(trainer: Trainer, references: tuple[tuple[Path, ...], ...]) -> tuple[PreviewSettings, tuple[str, ...]]:
    asked, unknown = trainer.validation, ()
    config = asked.config
    if references:
        prompts = zip(config.prompts, references, strict=True)
        config = replace(config, prompts=tuple(replace(prompt, references=paths) for prompt, paths in prompts))
    if asked.made_by != trainer.vae:
        unknown += (f"{OF_VALIDATION} VAE is another one than that of the latents",)
    if asked.model is not None:
        second, found = describe(asked.model, trainer.text_encoder, trainer.vae)
        config = replace(config, model=second)
        unknown += tuple(f"{OF_VALIDATION} second model: {what}" for what in found)
    return config, unknown


def read_dataset(requests: tuple[DatasetSettings, ...], report: Report) -> Dataset:
    """A job's folders, one after the other. Raises UserError if one of them cannot be trained on."""
    index = Index(files.cache_folder())
    return reduce(Dataset.chained, (read_folder(_resolved(request), index, report) for request in requests))


def _resolved(request: DatasetSettings) -> DatasetSettings:
    """The request with its folders where Dataset Folder would look for them."""
    mask = request.mask_options
    if mask.folder:
        mask = replace(mask, folder=files.resolve(str(mask.folder)))
    references = tuple(files.resolve(str(folder)) for folder in request.references)
    return replace(request, folder=files.resolve(str(request.folder)), references=references, mask_options=mask)
