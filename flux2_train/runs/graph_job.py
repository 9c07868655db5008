"""Describes a graph's run as a job, and reads the data set that a job names."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path

from ..data.dataset import Dataset
from ..data.folder import Report, read_folder
from ..data.index import Index
from ..host.describe import describe
from ..host.loading import files, places
from ..names import same_file
from ..settings.dataset_folder import DatasetSettings
from ..settings.job import Job, Output
from ..settings.previews import PreviewSettings
from ..train.trainer import Trainer

OF_VALIDATION = "Validation's"  # the first word of every unknown thing that only previews depend on


def job_of(trainer: Trainer, references: tuple[tuple[Path, ...], ...] = ()) -> Job:
    """The job that a graph's trainer does. ``unknown`` in it names what no file can describe.

    ``references`` are the files of the reference images, for each prompt of its previews.
    """
    chosen, unknown = describe(trainer.model, trainer.text_encoder, trainer.vae)
    previews, more = _previews(trainer, references) if trainer.previews else (None, ())
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
        changes=trainer.changes,
        unknown=unknown,
    )


def _previews(trainer: Trainer, references: tuple[tuple[Path, ...], ...]) -> tuple[PreviewSettings, tuple[str, ...]]:
    request, unknown = trainer.previews, ()
    config = request.config
    if references:
        prompts = zip(config.prompts, references, strict=True)
        config = replace(config, prompts=tuple(replace(prompt, references=paths) for prompt, paths in prompts))
    if not same_file(request.made_by, trainer.vae):
        unknown += (f"{OF_VALIDATION} VAE is another one than that of the latents",)
    if request.model is not None:
        second, more = describe(request.model, trainer.text_encoder, trainer.vae)
        config = replace(config, model=second)
        unknown += tuple(f"{OF_VALIDATION} second model: {what}" for what in more)
    return config, unknown


def read_dataset(requests: tuple[DatasetSettings, ...], report: Report) -> Dataset:
    """The images of all of a job's folders. Raises UserError if one of the folders cannot be trained on."""
    index = Index(files.cache_folder())
    return reduce(
        Dataset.chained, (read_folder(_resolved(request), index, report, places.may_read) for request in requests)
    )


def _resolved(request: DatasetSettings) -> DatasetSettings:
    """The request with full paths in place of its folders, which are looked for where Dataset Folder does."""
    mask = request.mask_options
    if mask.folder:
        mask = replace(mask, folder=files.resolve(str(mask.folder)))
    references = tuple(files.resolve(str(folder)) for folder in request.references)
    return replace(request, folder=files.resolve(str(request.folder)), references=references, mask_options=mask)


def output_of(loras: Path, runs: Path) -> Output:
    """The folders of a run's files, as a job names them: empty for ComfyUI's own folders."""
    both = ((loras, files.lora_folder()), (runs, files.run_folder()))
    return Output(*("" if chosen.resolve() == own.resolve() else str(chosen.resolve()) for chosen, own in both))
