from __future__ import annotations

import logging
from dataclasses import replace

from comfy_api.latest import io

from ..flux2_train.data import cache, long_captions
from ..flux2_train.data.index import Index
from ..flux2_train.data.store import Store
from ..flux2_train.host import describe, encode, memory
from ..flux2_train.host.files import CACHE_PLACES, USER, cache_folder
from ..flux2_train.memory.options import AUTO, OFFLOADS
from .progress import NodeProgress
from .types import CATEGORY, FluxDataset, FluxEmbeds, FluxLatents, FluxValidation


def store_inputs() -> list:
    """The inputs that both caches share."""
    return [
        io.Combo.Input(
            "store", options=list(CACHE_PLACES), default=USER, optional=True, advanced=True,
            tooltip="Where the cache lies on disk: in ComfyUI's user folder or in its output folder.",
        ),
        io.Float.Input(
            "limit_gb", default=0.0, min=0.0, max=100_000.0, step=1.0, optional=True, advanced=True,
            tooltip="Keep the cache below this many gigabytes by removing what other data sets have not used for the "
            "longest time; 0 is no limit.",
        ),
    ]  # fmt: skip


def changes(place: str = USER) -> int:
    """How often entries were taken out of a cache: a graph that relied on them has to look again."""
    folder = cache_folder(place)
    return Index(folder).changes() if (folder / "index.sqlite").is_file() else 0


class CacheEmbeds(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheEmbeds",
            display_name="Cache Embeds",
            category=CATEGORY,
            description="Encodes every caption once and keeps it on disk, so that training needs no text encoder.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the flavour you train: CLIP of Load FLUX.2."),
                FluxDataset.Input("dataset", tooltip="The captions to encode: wire Dataset Folder."),
                io.Int.Input(
                    "batch", default=1, min=1, max=256, optional=True, advanced=True,
                    tooltip="How many captions of equal length are encoded at a time; more is faster on large cards.",
                ),
                io.String.Input(
                    "prompts", default="", multiline=True, optional=True, advanced=True,
                    tooltip="More texts to encode, one per line, such as prompts and negatives of previews.",
                ),
                FluxValidation.Input(
                    "validation", optional=True,
                    tooltip="Also encodes the prompts of a Validation node, which LoRA Trainer paints.",
                ),
                *store_inputs(),
                io.Combo.Input(
                    "offload", options=list(OFFLOADS), default=AUTO, optional=True, advanced=True,
                    tooltip="Whether the text encoder's layers stay in host memory and come to the card one after the "
                    "other: 'auto' where it does not fit, 'all' always, 'off' never (ComfyUI then loads what fits). "
                    "The embeds are the same.",
                ),
            ],
            outputs=[FluxEmbeds.Output(display_name="embeds")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, store: str = USER, **_) -> int:
        return changes(store or USER)

    @classmethod
    def execute(
        cls, clip, dataset, batch: int = 1, prompts: str = "", validation=None, store: str = USER,
        limit_gb: float = 0.0, offload: str = AUTO,
    ) -> io.NodeOutput:  # fmt: skip
        settings = cache.EmbedSettings(batch, prompts, store, limit_gb, offload)
        painted = validation.config.texts if validation is not None else []
        progress = NodeProgress(cls.hidden.unique_id, 1)
        texts, report = [*settings.texts, *painted], progress.counting("captions")
        with encode.TextEncoder(clip, offload) as encoder:
            embeds, made = cache.cache_embeds(
                dataset, encoder, Store(cache_folder(store)), texts, batch, limit_gb, report
            )
            long = long_captions.warnings(dataset, encoder.length, texts)
        if made.encoded:
            memory.unload(clip.patcher)
        progress.say("\n".join([f"{made.total} captions: {made}", *(f"warning: {line}" for line in long)]))
        for line in long:
            logging.warning("%s", line)
        return io.NodeOutput(replace(embeds, made_by=describe.text_encoder_file(clip), settings=settings))


class CacheLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheLatents",
            display_name="Cache Latents",
            category=CATEGORY,
            description="Encodes every image once and keeps it on disk, so that training needs no VAE.",
            inputs=[
                io.Vae.Input("vae", tooltip="FLUX.2's autoencoder: VAE of Load FLUX.2."),
                FluxDataset.Input("dataset", tooltip="The images to encode: wire Dataset Folder."),
                io.Int.Input(
                    "batch", default=1, min=1, max=256, optional=True, advanced=True,
                    tooltip="How many images of one size are encoded at a time; more is faster on large cards.",
                ),
                io.Combo.Input(
                    "vae_precision", options=list(encode.PRECISIONS), default="as loaded", optional=True, advanced=True,
                    tooltip="Precision the images are encoded in: as ComfyUI loaded the VAE (bf16 on most cards), or "
                    "another one. fp32 is the most exact.",
                ),
                io.Int.Input(
                    "tile", default=0, min=0, max=4096, step=64, optional=True, advanced=True,
                    tooltip="Encode in tiles of this many pixels, which needs little memory and is slightly less "
                    "exact. 0 encodes whole images.",
                ),
                *store_inputs(),
            ],
            outputs=[FluxLatents.Output(display_name="latents")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, store: str = USER, **_) -> int:
        return changes(store or USER)

    @classmethod
    def execute(
        cls,
        vae,
        dataset,
        batch: int = 1,
        vae_precision: str = "as loaded",
        tile: int = 0,
        store: str = USER,
        limit_gb: float = 0.0,
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id, 1)
        encoder = encode.ImageEncoder(vae, vae_precision, tile)
        latents, made = cache.cache_latents(
            dataset, encoder, Store(cache_folder(store)), batch, limit_gb, progress.counting("images")
        )
        if made.encoded:
            memory.unload(encoder.vae.patcher)
        lines = [f"{made.total} images: {made}"]
        if encoder.in_tiles:
            lines.append(
                f"warning: memory ran out, so {encoder.in_tiles} were encoded in tiles; lower batch or set tile"
            )
        progress.say("\n".join(lines))
        settings = cache.LatentSettings(batch, vae_precision, tile, store, limit_gb)
        return io.NodeOutput(replace(latents, made_by=describe.vae_file(vae), settings=settings))
