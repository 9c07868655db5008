"""The two caches: text embeddings and latents of a data set, encoded once, before the transformer is needed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..canonical import canonical_hash
from ..errors import UserError
from .dataset import RANDOM, Dataset, Item, Mask, View
from .masks import mask_grid
from .render import pixels
from .store import Store

DECODERS = 4  # threads that read images while others are encoded
GIGABYTE = 10**9

T = TypeVar("T", bound=Hashable)
Report = Callable[[int, int], None]  # (encoded so far, to encode)


@dataclass(frozen=True)
class EmbedSettings:
    """How captions are encoded: ``batch`` of equal length at a time; 0 of ``limit_gb`` is no limit.

    ``prompts`` are more texts, one per line; ``store`` is the place of the cache on disk.
    """

    batch: int = 1
    prompts: str = ""
    store: str = "user folder"
    limit_gb: float = 0.0


@dataclass(frozen=True)
class LatentSettings:
    """How images are encoded: ``batch`` of one size at a time, in ``tile`` pixels where that is not 0."""

    batch: int = 1
    vae_precision: str = "as loaded"
    tile: int = 0
    store: str = "user folder"
    limit_gb: float = 0.0


@dataclass(frozen=True)
class EmbedCache:
    """Text embeddings (1, L, D) by text, for everything ``dataset`` says.

    ``made_by`` is the text encoder's file as Load FLUX.2 names it, empty where that does not say all.
    """

    dataset: Dataset
    embeds: Mapping[str, Tensor]
    made_by: str = ""
    settings: EmbedSettings = field(default_factory=EmbedSettings)


@dataclass(frozen=True)
class LatentCache:
    """Latents (1, 128, H/16, W/16) by view for every image and reference of ``dataset``, and its masks' values.

    ``made_by`` is the VAE's file as Load FLUX.2 names it, empty where that does not say all.
    """

    dataset: Dataset
    latents: Mapping[View | Mask, Tensor]
    made_by: str = ""
    settings: LatentSettings = field(default_factory=LatentSettings)


class Stored(Mapping[T, Tensor]):
    """Tensors that stay on disk until they are asked for."""

    def __init__(self, store: Store, keys: dict[T, str]):
        self.store, self.keys_of = store, keys

    def __getitem__(self, item: T) -> Tensor:
        return self.store.read(self.keys_of[item])

    def __iter__(self) -> Iterator[T]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)

    def __contains__(self, item: object) -> bool:
        return item in self.keys_of


class TextEncoder(Protocol):
    """What is needed of a text encoder."""

    identity: str

    def key(self, text: str) -> str: ...

    def batches(self, texts: list[str], most: int) -> Iterator[list[str]]: ...

    def __call__(self, texts: list[str]) -> list[Tensor]: ...


class ImageEncoder(Protocol):
    """What is needed of a VAE."""

    identity: str

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Made:
    """What a cache run did: entries asked for, made anew, and removed to stay within the limit."""

    total: int
    encoded: int
    removed: int = 0

    def __str__(self) -> str:
        removed = f", {self.removed} unused ones removed" if self.removed else ""
        return f"{self.encoded} encoded, {self.total - self.encoded} found in the cache{removed}"


def cache_embeds(
    dataset: Dataset,
    encoder: TextEncoder,
    store: Store,
    more: Iterable[str] = (),
    batch: int = 1,
    limit_gb: float = 0.0,
    report: Report = lambda done, total: None,
) -> tuple[EmbedCache, Made]:
    """Encode what the store lacks of the data set's texts and ``more``, ``batch`` of equal length at a time."""
    keys = {text: encoder.key(text) for text in dict.fromkeys([*dataset.texts(), *more])}

    def make(texts: list[str]) -> Iterator[tuple[str, Tensor]]:
        for group in encoder.batches(texts, batch):
            yield from zip(group, encoder(group), strict=True)

    made = _fill(store, keys, make, _owner("embeds", dataset, encoder.identity), dataset, limit_gb, report)
    return EmbedCache(dataset, Stored(store, keys)), made


def cache_latents(
    dataset: Dataset,
    encoder: ImageEncoder,
    store: Store,
    batch: int = 1,
    limit_gb: float = 0.0,
    report: Report = lambda done, total: None,
) -> tuple[LatentCache, Made]:
    """Encode what the store lacks of the data set's images, references and masks."""
    keys: dict[View | Mask, str] = {v: canonical_hash([encoder.identity, v.canonical()]) for v in dataset.views()}
    keys |= {mask: canonical_hash(mask.canonical()) for mask in dataset.masks()}

    def make(items: list[View | Mask]) -> Iterator[tuple[View | Mask, Tensor]]:
        yield from ((item, mask_grid(item)) for item in items if isinstance(item, Mask))
        yield from encode_views([item for item in items if isinstance(item, View)], encoder, batch)

    made = _fill(store, keys, make, _owner("latents", dataset, encoder.identity), dataset, limit_gb, report)
    return LatentCache(dataset, Stored(store, keys)), made


def _owner(kind: str, dataset: Dataset, identity: str) -> str:
    return canonical_hash([kind, dataset.settings, identity])


def _fill(
    store: Store,
    keys: dict[T, str],
    make: Callable[[list[T]], Iterator[tuple[T, Tensor]]],
    owner: str,
    dataset: Dataset,
    limit_gb: float,
    report: Report,
) -> Made:
    """Make the entries that are missing. Whatever ends it early, what is made by then stays."""
    store.use(owner, dataset.folder, list(keys.values()))
    absent = set(store.missing(list(keys.values())))
    todo = list({key: item for item, key in keys.items() if key in absent}.values())
    report(0, len(todo))
    try:
        for done, (item, value) in enumerate(make(todo), 1):
            store.write(keys[item], value)
            report(done, len(todo))
    finally:
        store.flush()
    return Made(len(set(keys.values())), len(todo), store.bound(limit_gb * GIGABYTE, {owner}))


def encode_views(
    views: list[View], encode: Callable[[Tensor], Tensor], batch: int = 1
) -> Iterator[tuple[View, Tensor]]:
    """Yield each view with its latents; images of one size go ``batch`` at a time, threads read ahead."""
    by_size: dict[tuple, list[View]] = {}
    for view in views:
        by_size.setdefault(view.crop.size, []).append(view)
    groups = [group[i : i + batch] for group in by_size.values() for i in range(0, len(group), batch)]
    with ThreadPoolExecutor(DECODERS) as pool:
        waiting: deque = deque()
        coming = iter(groups)
        ahead = 1 + -(-DECODERS // batch)
        try:
            while True:
                for group in islice(coming, max(0, ahead - len(waiting))):
                    waiting.append((group, [pool.submit(pixels, view) for view in group]))
                if not waiting:
                    return
                group, images = waiting.popleft()
                yield from zip(group, encode(torch.cat([i.result() for i in images])).split(1), strict=True)
        finally:
            for _, images in waiting:
                for image in images:
                    image.cancel()


def encode_images(dataset: Dataset, encode: Callable[[Tensor], Tensor]) -> Iterator[tuple[View, Tensor]]:
    """Yield each image and reference with its latents; ``encode`` takes ComfyUI's IMAGE (1, H, W, 3)."""
    return encode_views(list(dataset.views()), encode)


@dataclass(frozen=True)
class Sample:
    """One item, encoded: what a training step reads.

    ``mask`` (1, 1, H/16, W/16) has a mean of 1 and says where the loss counts; ``weight`` multiplies the loss.
    ``is_reg`` samples teach no trigger; ``base_target`` ones are trained towards the base model's prediction.
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
        """A sample as it is without any draw: its first caption and, of references drawn at random, the first."""
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

    def shape(self, index: int) -> tuple:
        """The shapes of a sample's latent and all its references, without reading them."""
        item = self.items[index]
        return tuple(view.latent_shape for view in (item.view, *item.references))

    def group(self, index: int) -> tuple:
        """What has to be equal for samples to share a batch."""
        item = self.items[index]
        source = self.sources[item.source]
        return item.view.latent_shape, source.is_reg, source.base_target

    def tokens(self) -> int:
        """The most image tokens a sample has, those of its references included."""
        return max(sum(shape[-1] * shape[-2] for shape in self.shape(i)) for i in range(len(self)))


def samples(embeds: EmbedCache, latents: LatentCache) -> Samples:
    """The items with both their parts. Raises UserError if the caches come from different data sets."""
    if embeds.dataset.fingerprint != latents.dataset.fingerprint:
        raise UserError(
            "Cache Embeds and Cache Latents hold different data sets (or a file changed between them): wire the "
            "same Dataset Folder into both and queue again."
        )
    return Samples(embeds, latents)
