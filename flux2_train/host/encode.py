"""Text and images through ComfyUI's own encoders, one at a time, for the caches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

LATENT_CHANNELS = 128


def encode_text(clip, text: str) -> Tensor:
    """(1, L, D) embeddings on the CPU, as the sampler would get them."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0].cpu()


def encode_image(vae, image: Tensor) -> Tensor:
    """(1, 128, H/16, W/16) fp32 latents on the CPU for a ComfyUI IMAGE (1, H, W, 3).

    Raises UserError if the VAE is not FLUX.2's.
    """
    latent = vae.encode(image).float().cpu()
    expected = (1, LATENT_CHANNELS, image.shape[1] // 16, image.shape[2] // 16)
    if tuple(latent.shape) != expected:
        raise UserError(
            f"This VAE made latents of shape {tuple(latent.shape)}, FLUX.2 needs {expected}: wire the VAE of "
            "Load FLUX.2, or Load VAE with flux2-vae.safetensors."
        )
    if not torch.isfinite(latent).all():
        raise UserError("The VAE made latents that are not finite numbers; start ComfyUI with --fp32-vae.")
    return latent
