"""What a training step reads: items of a data set with latents and embeds from the caches.

The settings of each item's folder say how captions and references are drawn.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import UserError
from ..settings.crops import RANDOM
from .cache import EmbedCache, LatentCache
from .dataset import Item, View


@dataclass(frozen=True)
class Sample:
    """One item, encoded: what a training step reads.

    ``mask`` (1, 1, H/16, W/16) has a mean of 1 and says where the loss counts; ``weight`` multiplies the loss.
    ``is_reg`` samples teach no trigger; ``base_target`` samples are trained towards the base model's prediction.
    """

    item: Item
    latent: Tensor
    embeds: Tensor
    class_embeds: Tensor
    references: tuple[Tensor, ...] = field(default=())
    mask: Tensor | None = None
    weight: float = 1.0
    is_reg: bool = False
    base_target: bool = False

    @property
    def shape(self) -> tuple:
        """What has to be equal for samples to share a batch."""
        return tuple(tuple(latent.shape) for latent in (self.latent, *self.references))

    @property
    def tokens(self) -> int:
        """Image tokens, those of the references included."""
        return sum(latent.shape[-1] * latent.shape[-2] for latent in (self.latent, *self.references))


class Samples(Sequence[Sample]):
    """The items of a data set, read from its caches when they are asked for."""

    def __init__(self, embeds: EmbedCache, latents: LatentCache):
        self.items, self.sources = latents.dataset.items, latents.dataset.sources
        self.embeds, self.latents = embeds.embeds, latents.latents

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        """The sample with nothing drawn: its first caption and, where references are drawn at random, the first one."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self.items[index]
        random_one = self.sources[item.source].reference_sampling == RANDOM
        return self._read(
            item, item.caption, item.class_caption, item.references[:1] if random_one else item.references
        )

    def draw(self, index: int, rng: random.Random) -> Sample:
        """A sample with one of its captions and references drawn, or dropped as its folder's settings say."""
        item = self.items[index]
        source, references = self.sources[item.source], item.references
        text, class_text = rng.choice(list(zip(item.captions, item.class_captions, strict=True)))
        if source.caption_dropout and rng.random() < source.caption_dropout:
            text, class_text = source.dropout_caption, source.dropout_class_caption
        if source.reference_sampling == RANDOM and references:
            references = (rng.choice(references),)
        if source.reference_dropout and rng.random() < source.reference_dropout:
            references = ()
        return self._read(item, text, class_text, references)

    def _read(self, item: Item, text: str, class_text: str, references: tuple[View, ...]) -> Sample:
        source = self.sources[item.source]
        return Sample(
            item,
            self.latents[item.view],
            self.embeds[text],
            self.embeds[class_text],
            tuple(self.latents[view] for view in references),
            None if item.mask is None else self.latents[item.mask],
            source.weight,
            source.is_reg,
            source.base_target,
        )

    def only(self, indices: Iterable[int]) -> Samples:
        """Some of the items."""
        some = copy.copy(self)
        some.items = tuple(self.items[i] for i in indices)
        return some

    def shape(self, index: int) -> tuple:
        """The shapes of a sample's latent and all its references, without reading them."""
        item = self.items[index]
        return tuple(view.latent_shape for view in (item.view, *item.references))

    def group(self, index: int) -> tuple:
        """What has to be equal for samples to share a batch."""
        item = self.items[index]
        source = self.sources[item.source]
        return item.view.latent_shape, source.is_reg, source.base_target, source.batch

    def tokens(self) -> int:
        """The most image tokens a sample has, those of its references included."""
        return max(sum(shape[-1] * shape[-2] for shape in self.shape(i)) for i in range(len(self)))

    def reference_tokens(self) -> int:
        """The most tokens that the references of a sample have."""
        return max(sum(shape[-1] * shape[-2] for shape in self.shape(i)[1:]) for i in range(len(self)))


def samples(embeds: EmbedCache, latents: LatentCache) -> Samples:
    """The items with their embeds and latents. Raises UserError if the caches come from different data sets."""
    if embeds.dataset.fingerprint != latents.dataset.fingerprint:
        raise UserError(
            "Cache Embeds and Cache Latents hold different data sets (or a file changed between them): wire the "
            "same Dataset Folder into both and queue again."
        )
    return Samples(embeds, latents)
