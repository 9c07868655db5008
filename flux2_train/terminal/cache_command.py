"""``cache latents`` and ``cache embeds``: what the nodes of that name do, for the data set of a job."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from ..settings.dataset_folder import DatasetSettings
from ..settings.job import Job
from .options import Bar, add_job, command, progress, read_job, start


def read(requests: tuple[DatasetSettings, ...], bar: Bar):
    """Read a job's data set or its held-out one, and print its warnings."""
    from ..runs.graph_job import read_dataset

    dataset = read_dataset(requests, bar)
    for warning in dataset.warnings:
        bar.say(f"warning: {warning}")
    return dataset


def encode_all(job: Job, bar: Bar, clip=None, vae=None) -> list[tuple]:
    """(EmbedCache, LatentCache) of a job's data set and, if it has one, of its held-out one.

    A cache is ``None`` if its encoder is. Each encoder leaves memory after its work.
    """
    from ..runs import encoding

    datasets = [read(requests, bar) for requests in (job.dataset, job.held_out) if requests]

    def embeds(dataset):
        report = partial(bar, "encoding captions")
        return encoding.encode_captions(clip, dataset, job.embeds, job.previews, report, job.training.slider.texts)

    def latents(dataset):
        return encoding.encode_images(vae, dataset, job.latents, partial(bar, "encoding images"))

    return list(
        zip(
            _caches(embeds, datasets, bar, "captions") if clip else [None] * len(datasets),
            _caches(latents, datasets, bar, "images") if vae else [None] * len(datasets),
            strict=True,
        )
    )


def _caches(encode: Callable, datasets: list, bar: Bar, what: str) -> list:
    """Fill the cache of every data set, and print how much there was to encode."""
    from ..host.system import memory

    results = []
    for dataset in datasets:
        encoded = encode(dataset)
        bar.say(f"{what}: {encoded.made}")
        for line in encoded.warnings:
            bar.say(f"warning: {line}")
        results.append(encoded)
    for encoded in results:
        memory.unload(encoded.patcher)
    return [encoded.cache for encoded in results]


def add_to(group) -> None:
    """Add ``cache latents`` and ``cache embeds`` to the commands on caches."""
    add_job(command(group, "latents", run_latents, "encode the images of a job's data set ahead of training"))
    add_job(command(group, "embeds", run_embeds, "encode the captions of a job's data set ahead of training"))


def run_latents(arguments: argparse.Namespace) -> None:
    """Encode the images of a job that are not in the cache yet."""
    _encode(arguments, latents=True)


def run_embeds(arguments: argparse.Namespace) -> None:
    """Encode the captions of a job that are not in the cache yet."""
    _encode(arguments, latents=False)


def _encode(arguments: argparse.Namespace, latents: bool) -> None:
    job = read_job(arguments)
    start(arguments)
    import torch

    from ..flavours import flavour
    from ..host.loading import files, load

    row = flavour(job.model.flavour)
    with progress() as bar, torch.inference_mode():
        if latents:
            path = files.locate(row.vaes, job.model.vae)
            encode_all(job, bar, vae=load.load_vae(path, row))
        else:
            path = files.locate(row.text_encoders, job.model.text_encoder)
            encode_all(job, bar, clip=load.load_clip(path, job.model))
