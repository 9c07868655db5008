"""What Cache Latents and Cache Embeds do, for the data set of a job."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..job import Job
from .options import Bar


def read(job: Job, bar: Bar):
    """The job's data set, with its warnings told."""
    from ..run.jobs import read_dataset

    dataset = read_dataset(job, bar)
    for warning in dataset.warnings:
        bar.say(f"warning: {warning}")
    return dataset


def encode_texts(clip, dataset, bar: Bar):
    """EmbedCache of a data set, from the cache on disk as far as that goes."""
    from ..data.cache import cache_embeds
    from ..data.store import Store
    from ..host import describe, encode
    from ..host.files import cache_folder

    report = partial(bar, "encoding captions")
    embeds, made = cache_embeds(dataset, encode.TextEncoder(clip), Store(cache_folder()), report=report)
    bar.say(f"captions: {made}")
    return replace(embeds, made_by=describe.text_encoder_file(clip))


def encode_latents(vae, dataset, bar: Bar):
    """LatentCache of a data set, from the cache on disk as far as that goes."""
    from ..data.cache import cache_latents
    from ..data.store import Store
    from ..host import describe, encode
    from ..host.files import cache_folder

    report = partial(bar, "encoding images")
    latents, made = cache_latents(dataset, encode.ImageEncoder(vae), Store(cache_folder()), report=report)
    bar.say(f"images: {made}")
    return replace(latents, made_by=describe.vae_file(vae))
