from __future__ import annotations

import logging

from comfy_api.latest import io

from ..flux2_train.data.dataset import Dataset
from ..flux2_train.data.index import Index
from ..flux2_train.host.graph_types import CLIP, VAE
from ..flux2_train.host.loading.files import cache_folder
from ..flux2_train.host.system import memory
from ..flux2_train.runs import encoding
from ..flux2_train.settings.caches import USER, EmbedSettings, LatentSettings
from . import fields
from .browser.shown import keep
from .options import Options, section
from .progress import NodeProgress
from .types import TRAIN, FluxDataset, FluxEmbeds, FluxLatents, FluxOptions


def changes(place: str = USER) -> int:
    """How often entries were removed from a cache: if this number changes, ComfyUI has to run the node anew."""
    folder = cache_folder(place)
    return Index(folder).changes() if (folder / "index.sqlite").is_file() else 0


def output(encoded: encoding.Encoded, progress: NodeProgress, what: str) -> io.NodeOutput:
    """Show what was encoded, and unload the encoder if it was used."""
    if encoded.made.encoded:
        memory.unload(encoded.patcher)
    lines = [*(f"warning: {line}" for line in encoded.warnings), f"{encoded.made.total} {what}: {encoded.made}"]
    return io.NodeOutput(encoded.cache, ui=keep(progress.node_id, "\n".join(lines)))


class CacheEmbeds(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheEmbeds",
            display_name="Cache Embeds",
            category=TRAIN,
            description="Encodes every caption once and keeps it on disk, so that training needs no text encoder.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the flavour you train: CLIP of Load FLUX.2."),
                FluxDataset.Input("dataset", tooltip="The captions to encode: wire Dataset Folder."),
                *fields.inputs(EmbedSettings, "batch", "prompts"),
                FluxOptions.Input(
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
    def execute(cls, clip: CLIP, dataset: Dataset, validation: Options | None = None, **widgets) -> io.NodeOutput:
        settings = EmbedSettings(**widgets)
        request = section("Cache Embeds", validation, "validation")
        previews = request.config if request is not None else None
        progress = NodeProgress(cls.hidden.unique_id, 1)
        encoded = encoding.encode_captions(clip, dataset, settings, previews, progress.counting("captions"))
        for line in encoded.warnings:
            logging.warning("%s", line)
        return output(encoded, progress, "captions")


class CacheLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheLatents",
            display_name="Cache Latents",
            category=TRAIN,
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
    def execute(cls, vae: VAE, dataset: Dataset, **widgets) -> io.NodeOutput:
        settings = LatentSettings(**widgets)
        progress = NodeProgress(cls.hidden.unique_id, 1)
        encoded = encoding.encode_images(vae, dataset, settings, progress.counting("images"))
        return output(encoded, progress, "images")
