"""Jobs from graphs, and what a job names: its data set."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from ..data.dataset import Dataset
from ..data.folder import Report, read_folder
from ..data.index import Index
from ..data.request import Request
from ..host import files
from ..host.describe import describe
from ..job import Job
from .trainer import Trainer


def job_of(trainer: Trainer) -> Job:
    """The job that a graph's trainer does, with what no file can say named in it."""
    chosen, unknown = describe(trainer.model, trainer.text_encoder, trainer.vae)
    if not trainer.dataset.requests:
        unknown += ("the data set was not read from folders",)
    embeds, latents = trainer.encoding
    return Job(
        trainer.dataset.requests,
        model=chosen,
        embeds=embeds,
        latents=latents,
        training=trainer.config,
        unknown=unknown,
    )


def read_dataset(job: Job, report: Report) -> Dataset:
    """The folders of a job, one after the other. Raises UserError if one of them cannot be trained on."""
    index = Index(files.cache_folder())
    return reduce(Dataset.chained, (read_folder(_resolved(request), index, report) for request in job.dataset))


def _resolved(request: Request) -> Request:
    """The request with its folders where Dataset Folder would look for them."""
    mask = request.mask
    if mask.folder:
        mask = replace(mask, folder=files.resolve(str(mask.folder)))
    references = tuple(files.resolve(str(folder)) for folder in request.references)
    return replace(request, folder=files.resolve(str(request.folder)), references=references, mask=mask)
