"""The two caches: text embeddings and latents of a data set, encoded once, before the transformer is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from .dataset import Dataset, Item, Mask, View
from .render import pixels


@dataclass(frozen=True)
class EmbedCache:
    """Text embeddings (1, L, D) by text, for everything ``dataset`` says.

    ``made_by`` is the text encoder's file as Load FLUX.2 names it, empty where that does not say all.
    """

    dataset: Dataset
    embeds: Mapping[str, Tensor]
    made_by: str = ""


@dataclass(frozen=True)
class LatentCache:
    """Latents (1, 128, H/16, W/16) by view for every image and reference of ``dataset``, and its masks' values.

    ``made_by`` is the VAE's file as Load FLUX.2 names it, empty where that does not say all.
    """

    dataset: Dataset
    latents: Mapping[View | Mask, Tensor]
    made_by: str = ""


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


def encode_images(dataset: Dataset, encode: Callable[[Tensor], Tensor]) -> Iterator[tuple[View, Tensor]]:
    """Yield each image and reference with its latents; ``encode`` takes ComfyUI's IMAGE (1, H, W, 3)."""
    for view in dataset.views():
        yield view, encode(pixels(view))


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
            latents.latents[i.view],
            embeds.embeds[i.caption],
            embeds.embeds[i.class_caption],
            tuple(latents.latents[view] for view in i.references),
        )
        for i in latents.dataset.items
    ]
