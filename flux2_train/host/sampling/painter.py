"""Painting previews during training, from cached embeds and with the adapters as they are at that step."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ..system import memory
from . import sample as sampling
from .sample import PaintSettings


def encode_references(vae: VAE, images: list[Tensor], resize: bool) -> list[Tensor]:
    """As ``sampling.encode_references``, but the latents are on the CPU."""
    return [latent.cpu() for latent in sampling.encode_references(vae, images, resize)]


def paint(
    model: ModelPatcher,
    embeds: Mapping[str, Tensor],
    prompt: str,
    negative: str,
    references: list[Tensor],
    settings: PaintSettings,
    method: str,
) -> Tensor:
    """(1, 128, H/16, W/16) latents on the CPU, painted with a MODEL that runs the adapters.

    ``embeds`` holds both texts. Global random states are restored. Raises ComfyUI's interrupt if the user cancels.
    """
    strength = sampling.guidance_for(model, settings.guidance)

    def conditioning(text: str) -> list:
        text_embeds = [[embeds[text].clone(), {"pooled_output": None}]]
        return sampling.conditioned(text_embeds, [r.clone() for r in references], strength.embedded, method)

    cards = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cards), torch.inference_mode():
        positive, uncond = conditioning(prompt), conditioning(negative)
        return sampling.denoise(model, positive, uncond, settings, sampling.interruptible, quiet=True).cpu()


def decode(vae: VAE, latents: list[Tensor]) -> list[Tensor]:
    """A picture (1, H, W, 3) in 0..1 on the CPU for each of ``latents``; afterwards the VAE is unloaded."""
    try:
        with torch.inference_mode():
            return [vae.decode(latent).cpu() for latent in latents]
    finally:
        memory.unload(vae.patcher)


def back(model: ModelPatcher, memory_required: float) -> None:
    """Load a borrowed MODEL again after painting, with ``memory_required`` bytes of room for training."""
    memory.reset_watermarks()
    comfy.model_management.load_models_gpu([model], memory_required=memory_required)
