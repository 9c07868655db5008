"""A data set's captions and images encoded through the cache on disk, for the nodes and the terminal alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data import long_captions
from ..data.cache import EmbedCache, LatentCache, Made, Report, cache_embeds, cache_latents
from ..data.dataset import Dataset
from ..data.store import Store
from ..host import describe
from ..host.encoding import encode
from ..host.graph_types import CLIP, VAE, ModelPatcher
from ..host.loading.files import cache_folder
from ..settings.caches import EmbedSettings, LatentSettings
from ..settings.previews import PreviewSettings


@dataclass(frozen=True)
class Encoded:
    """A complete cache. ``made`` counts what had to be encoded; if anything had to, ``patcher`` is still in memory."""

    cache: EmbedCache | LatentCache
    made: Made
    warnings: tuple[str, ...]
    patcher: ModelPatcher


def encode_captions(
    clip: CLIP, dataset: Dataset, settings: EmbedSettings, previews: PreviewSettings | None, report: Report,
    slider: Sequence[str] = (),
) -> Encoded:  # fmt: skip
    """Encode the captions of a data set, the texts of ``settings``, and the prompts of ``previews`` and ``slider``."""
    more = [*settings.texts, *(previews.texts if previews else []), *slider]
    store = Store(cache_folder(settings.store))
    with encode.TextEncoder(clip, settings.offload) as encoder:
        embeds, made = cache_embeds(dataset, encoder, store, more, settings.batch, settings.limit_gb, report)
        long = long_captions.warnings(dataset, encoder.length, more)
    embeds = replace(embeds, made_by=describe.text_encoder_file(clip), settings=settings)
    return Encoded(embeds, made, tuple(long), clip.patcher)


def encode_images(vae: VAE, dataset: Dataset, settings: LatentSettings, report: Report) -> Encoded:
    """Encode the images of a data set, references included."""
    encoder = encode.ImageEncoder(vae, settings.vae_precision, settings.tile)
    store = Store(cache_folder(settings.store))
    latents, made = cache_latents(dataset, encoder, store, settings.batch, settings.limit_gb, report)
    latents = replace(latents, made_by=describe.vae_file(vae), settings=settings)
    warnings = ()
    if encoder.in_tiles:
        warnings = (f"memory ran out, so {encoder.in_tiles} were encoded in tiles; lower batch or set tile",)
    return Encoded(latents, made, warnings, encoder.vae.patcher)
