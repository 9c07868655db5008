"""The two caches of a data set: text embeddings and latents, encoded once, before the transformer is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..hashing import canonical_hash
from ..names import shown
from ..settings.caches import EmbedSettings, LatentSettings
from .dataset import Dataset, Mask, View
from .masks import mask_grid
from .render import pixels
from .store import Store

DECODERS = 4  # threads that read images while others are encoded
GIGABYTE = 10**9

T = TypeVar("T", bound=Hashable)
Report = Callable[[int, int], None]  # (encoded so far, to encode)


@dataclass(frozen=True)
class EmbedCache:
    """Text embeddings (1, L, D) by text, for every text of ``dataset``.

    ``made_by`` is the text encoder's file as Load FLUX.2 names it, empty where the file alone does not determine the
    embeddings.
    """

    dataset: Dataset
    embeds: Mapping[str, Tensor]
    made_by: str = ""
    settings: EmbedSettings = field(default_factory=EmbedSettings)


@dataclass(frozen=True)
class LatentCache:
    """Latents (1, 128, H/16, W/16) by view for every image and reference of ``dataset``, and its masks' values.

    ``made_by`` is the VAE's file as Load FLUX.2 names it, empty where the file alone does not determine the latents.
    """

    dataset: Dataset
    latents: Mapping[View | Mask, Tensor]
    made_by: str = ""
    settings: LatentSettings = field(default_factory=LatentSettings)


class StoredTensors(Mapping[T, Tensor]):
    """Tensors by item, each read from disk when it is looked up."""

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


class EncodesTexts(Protocol):
    """What is needed of a text encoder."""

    identity: str

    def key(self, text: str) -> str: ...

    def batches(self, texts: list[str], most: int) -> Iterator[list[str]]: ...

    def __call__(self, texts: list[str]) -> list[Tensor]: ...


class EncodesImages(Protocol):
    """What is needed of a VAE."""

    identity: str

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Made:
    """What filling a cache did: entries needed, entries newly encoded, and entries removed to stay within the limit."""

    total: int
    encoded: int
    removed: int = 0

    def __str__(self) -> str:
        removed = f", {self.removed} unused ones removed" if self.removed else ""
        return f"{self.encoded} encoded, {self.total - self.encoded} found in the cache{removed}"


def cache_embeds(
    dataset: Dataset,
    encoder: EncodesTexts,
    store: Store,
    more: Iterable[str] = (),
    batch: int = 1,
    limit_gb: float = 0.0,
    report: Report = lambda done, total: None,
) -> tuple[EmbedCache, Made]:
    """Encode the texts of the data set and ``more`` that the store lacks, ``batch`` texts of equal length at a time."""
    keys = {text: encoder.key(text) for text in dict.fromkeys([*dataset.texts(), *more])}

    def make(texts: list[str]) -> Iterator[tuple[str, Tensor]]:
        for group in encoder.batches(texts, batch):
            for text, embeds in zip(group, encoder(group), strict=True):
                _require_finite(embeds, f"The embeds of {shown(text, 60)!r}", "text_encoder_precision of Load FLUX.2")
                yield text, embeds

    counts = _fill(store, keys, make, _owner("embeds", dataset, encoder.identity), dataset, limit_gb, report)
    return EmbedCache(dataset, StoredTensors(store, keys)), counts


def cache_latents(
    dataset: Dataset,
    encoder: EncodesImages,
    store: Store,
    batch: int = 1,
    limit_gb: float = 0.0,
    report: Report = lambda done, total: None,
) -> tuple[LatentCache, Made]:
    """Encode the images, references and masks of the data set that the store lacks."""
    keys: dict[View | Mask, str] = {v: canonical_hash([encoder.identity, v.canonical()]) for v in dataset.views()}
    keys |= {mask: canonical_hash(mask.canonical()) for mask in dataset.masks()}

    def make(items: list[View | Mask]) -> Iterator[tuple[View | Mask, Tensor]]:
        yield from ((item, mask_grid(item)) for item in items if isinstance(item, Mask))
        for view, latents in encode_views([item for item in items if isinstance(item, View)], encoder, batch):
            _require_finite(latents, f"The latents of {shown(view.path.name)}", "vae_precision of Cache Latents")
            yield view, latents

    counts = _fill(store, keys, make, _owner("latents", dataset, encoder.identity), dataset, limit_gb, report)
    return LatentCache(dataset, StoredTensors(store, keys)), counts


def _require_finite(value: Tensor, what: str, setting: str) -> None:
    """Raise UserError that names what was encoded, and the setting that may help, if a number of it is not finite."""
    if not value.isfinite().all():
        raise UserError(
            f"{what} are not finite numbers, and nothing can be learned from them: set {setting} to fp32, or leave the "
            "file out."
        )


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
    """Make the entries that are missing. If an error or a stop ends this early, the entries made so far stay."""
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
    """Yield each view with its latents. Images of one size are encoded ``batch`` at a time; threads read the next."""
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
