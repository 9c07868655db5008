"""What Cache Latents and Cache Embeds do, for the data set of a job."""

from __future__ import annotations

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
    """EmbedCache of a data set."""
    from ..data.cache import EmbedCache
    from ..host import describe, encode

    texts, embeds = dataset.texts(), {}
    for text in texts:
        embeds[text] = encode.encode_text(clip, text)
        bar("encoding captions", len(embeds), len(texts))
    return EmbedCache(dataset, embeds, describe.text_encoder_file(clip))


def encode_latents(vae, dataset, bar: Bar):
    """LatentCache of a data set."""
    from ..data.cache import LatentCache, encode_images
    from ..host import describe, encode

    total, latents = sum(1 for _ in dataset.views()), {}
    for view, latent in encode_images(dataset, lambda image: encode.encode_image(vae, image)):
        latents[view] = latent
        bar("encoding images", len(latents), total)
    return LatentCache(dataset, latents, describe.vae_file(vae))
