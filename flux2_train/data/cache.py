"""The two caches: text embeddings and latents of a data set, encoded once, before the transformer is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..geometry import bucket
from .folder import Dataset, Item
from .images import fit, load_rgb


@dataclass(frozen=True)
class EmbedCache:
    """Text embeddings (1, L, D) by text, for every caption and class caption of ``dataset``."""

    dataset: Dataset
    embeds: dict[str, Tensor]


@dataclass(frozen=True)
class LatentCache:
    """Latents (1, 128, H/16, W/16) by image path, for every item of ``dataset`` and its references."""

    dataset: Dataset
    latents: dict[Path, Tensor]


@dataclass(frozen=True)
class Sample:
    """One item, encoded: what a training step reads."""

    item: Item
    latent: Tensor
    embeds: Tensor
    class_embeds: Tensor
    references: tuple[Tensor, ...] = ()

    @property
    def shape(self) -> tuple:
        """What has to be equal for samples to share a batch."""
        return tuple(tuple(latent.shape) for latent in (self.latent, *self.references))

    @property
    def tokens(self) -> int:
        """Image tokens, those of the references included."""
        return sum(latent.shape[-1] * latent.shape[-2] for latent in (self.latent, *self.references))


def texts(dataset: Dataset) -> list[str]:
    """Every distinct text to encode, in a fixed order."""
    return list(dict.fromkeys(t for item in dataset.items for t in (item.caption, item.class_caption)))


def encode_images(dataset: Dataset, encode: Callable[[Tensor], Tensor]) -> Iterator[tuple[Path, Tensor]]:
    """Yield the path of each image and reference with its latents; ``encode`` takes ComfyUI's IMAGE (1, H, W, 3)."""
    for item in dataset.items:
        yield item.path, encode(fit(load_rgb(item.path), item.size))
        for path in item.references:
            image = load_rgb(path)
            yield path, encode(fit(image, bucket(*image.size, dataset.resolution)))


def samples(embeds: EmbedCache, latents: LatentCache) -> list[Sample]:
    """The items with both their parts. Raises UserError if the caches come from different data sets."""
    if embeds.dataset.fingerprint != latents.dataset.fingerprint:
        raise UserError(
            "Cache Embeds and Cache Latents hold different data sets (or a file changed between them): wire the "
            "same Dataset Folder into both and queue again."
        )
    return [
        Sample(
            i,
            latents.latents[i.path],
            embeds.embeds[i.caption],
            embeds.embeds[i.class_caption],
            tuple(latents.latents[path] for path in i.references),
        )
        for i in latents.dataset.items
    ]
