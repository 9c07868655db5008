from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data import cache
from ..flux2_train.host import describe, encode
from .progress import NodeProgress
from .types import CATEGORY, FluxDataset, FluxEmbeds, FluxLatents


class CacheEmbeds(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheEmbeds",
            display_name="Cache Embeds",
            category=CATEGORY,
            description="Encodes every caption once, so that training needs no text encoder.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the flavour you train: CLIP of Load FLUX.2."),
                FluxDataset.Input("dataset", tooltip="The captions to encode: wire Dataset Folder."),
            ],
            outputs=[FluxEmbeds.Output(display_name="embeds")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, dataset) -> io.NodeOutput:
        texts = dataset.texts()
        progress, embeds = NodeProgress(cls.hidden.unique_id, len(texts)), {}
        for text in texts:
            embeds[text] = encode.encode_text(clip, text)
            progress.advance(len(embeds))
        progress.say(f"{len(embeds)} captions encoded")
        return io.NodeOutput(cache.EmbedCache(dataset, embeds, describe.text_encoder_file(clip)))


class CacheLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CacheLatents",
            display_name="Cache Latents",
            category=CATEGORY,
            description="Encodes every image once, so that training needs no VAE.",
            inputs=[
                io.Vae.Input("vae", tooltip="FLUX.2's autoencoder: VAE of Load FLUX.2."),
                FluxDataset.Input("dataset", tooltip="The images to encode: wire Dataset Folder."),
            ],
            outputs=[FluxLatents.Output(display_name="latents")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, vae, dataset) -> io.NodeOutput:
        total = sum(1 for _ in dataset.views())
        progress, latents = NodeProgress(cls.hidden.unique_id, total), {}
        for view, latent in cache.encode_images(dataset, lambda image: encode.encode_image(vae, image)):
            latents[view] = latent
            progress.advance(len(latents))
        progress.say(f"{len(latents)} images encoded")
        return io.NodeOutput(cache.LatentCache(dataset, latents, describe.vae_file(vae)))
