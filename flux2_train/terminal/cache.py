"""What Cache Latents and Cache Embeds do, for the data set of a job."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from ..settings.dataset import DatasetSettings
from ..settings.job import Job
from .options import Bar, add_job, command, progress, read_job, start


def read(requests: tuple[DatasetSettings, ...], bar: Bar):
    """A job's data set or its held-out one, with the warnings told."""
    from ..run.jobs import read_dataset

    dataset = read_dataset(requests, bar)
    for warning in dataset.warnings:
        bar.say(f"warning: {warning}")
    return dataset


def encode_texts(clip, dataset, job: Job, bar: Bar):
    """EmbedCache of a data set, from the cache on disk as far as that goes."""
    from ..data import long_captions
    from ..data.cache import cache_embeds
    from ..data.store import Store
    from ..host import describe, encode
    from ..host.files import cache_folder

    asked, report = job.embeds, partial(bar, "encoding captions")
    painted = job.previews.texts if job.previews else []
    more = [*asked.texts, *painted]
    store = Store(cache_folder(asked.store))
    with encode.TextEncoder(clip, asked.offload) as encoder:
        embeds, made = cache_embeds(dataset, encoder, store, more, asked.batch, asked.limit_gb, report)
        long = long_captions.warnings(dataset, encoder.length, more)
    bar.say(f"captions: {made}")
    for line in long:
        bar.say(f"warning: {line}")
    return replace(embeds, made_by=describe.text_encoder_file(clip), settings=asked)


def encode_latents(vae, dataset, job: Job, bar: Bar):
    """LatentCache of a data set, from the cache on disk as far as that goes."""
    from ..data.cache import cache_latents
    from ..data.store import Store
    from ..host import describe, encode
    from ..host.files import cache_folder

    asked, report = job.latents, partial(bar, "encoding images")
    encoder, store = encode.ImageEncoder(vae, asked.vae_precision, asked.tile), Store(cache_folder(asked.store))
    latents, made = cache_latents(dataset, encoder, store, asked.batch, asked.limit_gb, report)
    bar.say(f"images: {made}")
    return replace(latents, made_by=describe.vae_file(vae), settings=asked)


def encode_all(job: Job, bar: Bar, clip=None, vae=None) -> list[tuple]:
    """(EmbedCache, LatentCache) of a job's data set and, if it has one, its held-out one; ``None`` without encoder.

    Each encoder leaves memory when it has done its work.
    """
    from ..host import memory

    asked = [requests for requests in (job.dataset, job.held_out) if requests]
    datasets = [read(requests, bar) for requests in asked]
    embeds = [clip and encode_texts(clip, dataset, job, bar) for dataset in datasets]
    if clip:
        memory.unload(clip.patcher)
    latents = [vae and encode_latents(vae, dataset, job, bar) for dataset in datasets]
    if vae:
        memory.unload(vae.patcher)
    return list(zip(embeds, latents, strict=True))


def add_to(group) -> None:
    """Add ``cache latents`` and ``cache embeds`` to the commands on caches."""
    add_job(command(group, "latents", run_latents, "encode the images of a job's data set ahead of training"))
    add_job(command(group, "embeds", run_embeds, "encode the captions of a job's data set ahead of training"))


def run_latents(arguments: argparse.Namespace) -> None:
    """Encode what the cache lacks of a job's images."""
    _encode(arguments, latents=True)


def run_embeds(arguments: argparse.Namespace) -> None:
    """Encode what the cache lacks of a job's captions."""
    _encode(arguments, latents=False)


def _encode(arguments: argparse.Namespace, latents: bool) -> None:
    job = read_job(arguments)
    start(arguments)
    import torch

    from ..flavours import flavour
    from ..host import files, load

    row = flavour(job.model.flavour)
    with progress() as bar, torch.inference_mode():
        if latents:
            path = files.locate(row.vaes, job.model.vae)
            encode_all(job, bar, vae=load.load_vae(path, row))
        else:
            path = files.locate(row.text_encoders, job.model.text_encoder)
            encode_all(job, bar, clip=load.load_clip(path, job.model))
