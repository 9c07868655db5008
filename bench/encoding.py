"""Text and images encoded by ComfyUI alone, without the pack's caches: for data sets of benches and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flux2_train.data.cache import EmbedCache, LatentCache, encode_views
from flux2_train.data.dataset import Dataset


def encode_text(clip, text: str) -> Tensor:
    """(1, L, D) embeddings on the CPU, as the sampler would get them."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0].cpu()


def encode_image(vae, image: Tensor) -> Tensor:
    """(B, 128, H/16, W/16) fp32 latents on the CPU for ComfyUI's IMAGE (B, H, W, 3)."""
    return vae.encode(image).float().cpu()


@torch.inference_mode()
def encoded(dataset: Dataset, clip, vae, prompts: Sequence[str] = ()) -> tuple[EmbedCache, LatentCache]:
    """Everything of a data set and further ``prompts``, in memory, as ComfyUI encodes it."""
    embeds = {text: encode_text(clip, text) for text in (*dataset.texts(), *prompts)}
    latents = dict(encode_views(list(dataset.views()), lambda image: encode_image(vae, image)))
    return EmbedCache(dataset, embeds), LatentCache(dataset, latents)
