"""Trains what a job file describes, from the model files to the LoRA, for the terminal and for the server's queue."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator

from ...data.images import load_rgb, to_tensor
from ...errors import UserError
from ...host import describe
from ...host.loading import files
from ...host.system import memory
from ...names import counted
from ...settings.dataset_folder import DatasetSettings
from ...settings.job import Job
from ...train import processes
from ...train.preview_request import PreviewRequest
from ...train.trainer import Trainer
from .. import encoding
from ..folder import RunFolder
from ..graph_job import read_dataset
from ..pack import reading
from ..pack.contents import Pack
from ..precision import Parts, parts_of
from ..prepare import new_trainer
from ..results import Results
from ..session import Listen, train


class Report(Protocol):
    """Shows what is done before the first step."""

    def say(self, text: str) -> None:
        """Show a line."""

    def __call__(self, text: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done in the part called ``text``."""


def run_job(
    job: Job,
    accelerator: Accelerator | None,
    report: Report,
    listening: Callable[[Trainer], AbstractContextManager[Listen]],
    how: str | RunFolder,
    packed: Pack | None = None,
) -> Results | None:
    """Train a job. ``how`` and the result are those of ``session.train``.

    ``listening(trainer)`` is entered around the training and gives what listens to the run. The caches of a pack are
    ready, and its job needs no text encoder. Raises UserError for files that are missing and for data that cannot be
    trained on.
    """
    accelerator = accelerator or processes.alone()
    _require_number(job, accelerator)
    with torch.inference_mode():  # as ComfyUI runs nodes
        decide = partial(processes.decided, accelerator)
        parts = parts_of(job.model, decide, reading.needed(job)) if packed else parts_of(job.model, decide)
        report.say(parts.text)
        vae = parts.load_vae() if parts.vae else None
        with processes.main_first(accelerator):  # the main process fills the caches, from which the others read
            (embeds, latents), *held_out = _caches_of(job, parts, vae, report, packed)
        trainer = new_trainer(
            parts.load_model(), embeds, latents, job.training, accelerator, previews_of(job, vae),
            held_out[0] if held_out else None,
        )  # fmt: skip
        loras = Path(job.output.loras) if job.output.loras else files.lora_folder()
        runs = Path(job.output.runs) if job.output.runs else files.run_folder()
        trainer.repeat(job.changes)
        with listening(trainer) as listen:
            return train(trainer, loras, runs, listen, how)


def _require_number(job: Job, accelerator: Accelerator) -> None:
    """Raise UserError if a job that was trained in several processes would have fewer images per step in these."""
    asked, number = job.training.processes, accelerator.num_processes
    if asked > 1 and asked != number:
        raise UserError(
            f"This job is trained in {asked} processes, and here {counted(number, 'process is', 'processes are')}: "
            f"start it with accelerate launch --num_processes {asked}, or set processes to 1 and batch to what makes "
            "as many images per step."
        )


def _caches_of(job: Job, parts: Parts, vae, report: Report, packed: Pack | None) -> list[tuple]:
    if packed is None:
        return encode_all(job, report, parts.load_clip(), vae)
    reading.require_transformer(packed, parts.transformer)
    return reading.caches(packed, job, report)


def previews_of(job: Job, vae) -> PreviewRequest | None:
    """What to paint for a job's ``previews``, with the second model loaded; ``None`` if the job has no previews."""
    previews = job.previews
    if previews is None:
        return None
    references = tuple(tuple(to_tensor(load_rgb(files.resolve_file(str(path)))) for path in prompt.references)
                       for prompt in previews.prompts)  # fmt: skip
    second = previews.model and parts_of(previews.model).load_model()
    return PreviewRequest(previews, vae, second, references, describe.vae_file(vae))


def encode_all(job: Job, report: Report, clip=None, vae=None) -> list[tuple]:
    """(EmbedCache, LatentCache) of a job's data set and, if it has one, of its held-out one.

    A cache is ``None`` if its encoder is. Each encoder leaves memory after its work.
    """
    datasets = [_read(requests, report) for requests in (job.dataset, job.held_out) if requests]

    def embeds(dataset):
        progress = partial(report, "encoding captions")
        return encoding.encode_captions(clip, dataset, job.embeds, job.previews, progress, job.training.slider.texts)

    def latents(dataset):
        return encoding.encode_images(vae, dataset, job.latents, partial(report, "encoding images"))

    return list(
        zip(
            _caches(embeds, datasets, report, "captions") if clip else [None] * len(datasets),
            _caches(latents, datasets, report, "images") if vae else [None] * len(datasets),
            strict=True,
        )
    )


def _read(requests: tuple[DatasetSettings, ...], report: Report):
    """Read a job's data set or its held-out one, and show its warnings."""
    dataset = read_dataset(requests, report)
    for warning in dataset.warnings:
        report.say(f"warning: {warning}")
    return dataset


def _caches(encode: Callable, datasets: list, report: Report, what: str) -> list:
    """Fill the cache of every data set, and show how much there was to encode."""
    results = []
    for dataset in datasets:
        encoded = encode(dataset)
        report.say(f"{what}: {encoded.made}")
        for line in encoded.warnings:
            report.say(f"warning: {line}")
        results.append(encoded)
    for encoded in results:
        memory.unload(encoded.patcher)
    return [encoded.cache for encoded in results]
