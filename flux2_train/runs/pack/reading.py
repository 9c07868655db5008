"""The caches of a pack, in place of text encoder and VAE, and which model files a job in it still needs."""

from __future__ import annotations

from pathlib import Path

from ...data.cache import EmbedCache, LatentCache, StoredTensors
from ...data.dataset import Dataset
from ...data.store import Store
from ...errors import UserError
from ...hashing import canonical_hash
from ...host.loading import load, shards
from ...names import counted
from ...settings.job import Job
from ..graph_job import read_dataset
from .contents import Pack

TRANSFORMER, VAE_PART = load.PARTS[0], load.PARTS[2]


def needed(job: Job) -> tuple[str, ...]:
    """The model files that a job in a pack needs: the transformer, and the VAE to paint previews."""
    return (TRANSFORMER, VAE_PART) if job.previews else (TRANSFORMER,)


def require_transformer(packed: Pack, path: Path) -> None:
    """Raise UserError if a transformer's files have another size than those that the run was trained on."""
    size = sum(part.stat().st_size for part in shards.parts_of(path))
    if packed.contents.transformer and size != packed.contents.transformer:
        raise UserError(
            f"{path.name} has {size} bytes, and the run {packed.contents.name} was trained on one of "
            f"{packed.contents.transformer}: put that file in its place."
        )


def caches(packed: Pack, job: Job, report) -> list[tuple[EmbedCache, LatentCache]]:
    """What ``encode_all`` gives, from the entries in the pack. ``job`` is ``packed.job``'s.

    Raises UserError if an entry is missing or damaged, or if a picture or a caption has changed.
    """
    store = Store(packed.cache)
    return [_caches(packed, store, read_dataset(requests, report), job)
            for requests in (job.dataset, job.held_out) if requests]  # fmt: skip


def _caches(packed: Pack, store: Store, dataset: Dataset, job: Job) -> tuple[EmbedCache, LatentCache]:
    texts, known = dict(packed.contents.texts), packed.contents.images
    images = {item: known.get(canonical_hash(item.canonical()), "") for item in (*dataset.views(), *dataset.masks())}
    new = [text for text in dataset.texts() if text not in texts], [item for item, key in images.items() if not key]
    if any(new):
        raise UserError(
            f"{counted(len(new[0]), 'caption')} and {counted(len(new[1]), 'picture')} of the pack {packed.root} are "
            "not in its caches: its files or settings have changed. Put them back, or pack the run again."
        )
    lost = store.missing([*texts.values(), *images.values()])
    if lost:
        raise UserError(
            f"{counted(len(lost), 'entry is', 'entries are')} missing or damaged in {packed.cache}; copy the pack "
            "again."
        )
    return (
        EmbedCache(dataset, StoredTensors(store, texts), job.model.text_encoder, job.embeds),
        LatentCache(dataset, StoredTensors(store, images), job.model.vae, job.latents),
    )
