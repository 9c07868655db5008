from __future__ import annotations

import logging
from dataclasses import replace

from comfy_api.latest import io

from ..flux2_train.data import cache, long_captions
from ..flux2_train.data.index import Index
from ..flux2_train.data.store import Store
from ..flux2_train.host import describe, encode, memory
from ..flux2_train.host.files import cache_folder
from ..flux2_train.settings.caches import USER, EmbedSettings, LatentSettings
from . import fields
from .progress import NodeProgress
from .types import CATEGORY, FluxDataset, FluxEmbeds, FluxLatents, FluxValidation


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
                *fields.inputs(EmbedSettings, "batch", "prompts"),
                FluxValidation.Input(
                    "validation", optional=True,
                    tooltip="Also encodes the prompts of a Validation node, which LoRA Trainer paints.",
                ),
                *fields.inputs(EmbedSettings, "store", "limit_gb", "offload"),
            ],
            outputs=[FluxEmbeds.Output(display_name="embeds")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, store: str = USER, **_) -> int:
        return changes(store or USER)

    @classmethod
    def execute(cls, clip, dataset, validation=None, **widgets) -> io.NodeOutput:
        settings = EmbedSettings(**widgets)
        painted = validation.config.texts if validation is not None else []
        progress = NodeProgress(cls.hidden.unique_id, 1)
        texts, report = [*settings.texts, *painted], progress.counting("captions")
        store = Store(cache_folder(settings.store))
        with encode.TextEncoder(clip, settings.offload) as encoder:
            embeds, made = cache.cache_embeds(dataset, encoder, store, texts, settings.batch, settings.limit_gb, report)
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
                *fields.inputs(LatentSettings),
            ],
            outputs=[FluxLatents.Output(display_name="latents")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, store: str = USER, **_) -> int:
        return changes(store or USER)

    @classmethod
    def execute(cls, vae, dataset, **widgets) -> io.NodeOutput:
        settings = LatentSettings(**widgets)
        progress = NodeProgress(cls.hidden.unique_id, 1)
        encoder, store = encode.ImageEncoder(vae, settings.vae_precision, settings.tile), cache_folder(settings.store)
        latents, made = cache.cache_latents(
            dataset, encoder, Store(store), settings.batch, settings.limit_gb, progress.counting("images")
        )
        if made.encoded:
            memory.unload(encoder.vae.patcher)
        lines = [f"{made.total} images: {made}"]
        if encoder.in_tiles:
            lines.append(
                f"warning: memory ran out, so {encoder.in_tiles} were encoded in tiles; lower batch or set tile"
            )
        progress.say("\n".join(lines))
        return io.NodeOutput(replace(latents, made_by=describe.vae_file(vae), settings=settings))
