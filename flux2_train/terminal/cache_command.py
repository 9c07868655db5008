"""``cache latents`` and ``cache embeds``: what the nodes of that name do, for the data set of a job."""

from __future__ import annotations

import argparse

from .options import add_job, command, progress, read_job, start


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
    from ..runs.queue.run_job import encode_all

    row = flavour(job.model.flavour)
    with progress() as bar, torch.inference_mode():
        if latents:
            path = files.locate(row.vaes, job.model.vae)
            encode_all(job, bar, vae=load.load_vae(path, row))
        else:
            path = files.locate(row.text_encoders, job.model.text_encoder)
            encode_all(job, bar, clip=load.load_clip(path, job.model))
