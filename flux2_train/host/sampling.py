"""Sampling as FLUX.2 is meant to be sampled, through ComfyUI's own encoder, guider, sampler and decoder."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from comfy_extras.nodes_flux import get_schedule
from torch import Tensor

from ..errors import UserError
from ..flavours import BASE, DISTILLED
from ..geometry import MULTIPLE, at_most
from . import identify

REFERENCE_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed: ``embedded`` is fed to the model, ``cfg`` mixes two predictions."""

    embedded: float
    cfg: float


def guidance_for(model, asked: float) -> Guidance:
    """dev embeds it, klein base mixes with the negative prompt, distilled klein has none. 0 asks for the default."""
    row = identify.flavour_of(model)
    value = asked or (row.guidance if row else 4.0)
    if identify.has_guidance(model):
        return Guidance(value, 1.0)
    return Guidance(value, 1.0 if identify.variant_of(model) == DISTILLED else value)


def steps_for(model, asked: int) -> int:
    """The number of steps; 0 asks for what the flavour and variant were made for."""
    row = identify.flavour_of(model)
    return asked or (row.steps[identify.variant_of(model) or BASE] if row else 20)


def sigmas(steps: int, width: int, height: int) -> Tensor:
    """(steps + 1,) noise levels from 1 to 0 on Black Forest Labs' empirical mu, as core's Flux2Scheduler gives."""
    return get_schedule(steps, round(width * height / MULTIPLE**2))


def encode_references(vae, images: list[Tensor], resize: bool) -> list[Tensor]:
    """Latents of reference images (1, H, W, 3), scaled down to a megapixel if ``resize``, never up."""
    latents = []
    for image in images:
        height, width = image.shape[1:3]
        if min(height, width) < MULTIPLE:
            raise UserError(f"A reference image is {width}x{height} pixels; it needs at least {MULTIPLE} on each side.")
        fitted = at_most(width, height, REFERENCE_PIXELS)
        if resize and fitted != (width, height):
            image = comfy.utils.common_upscale(image.movedim(-1, 1), *fitted, "lanczos", "center").movedim(1, -1)
        latents += [vae.encode(image[i : i + 1, :, :, :3]) for i in range(image.shape[0])]
    return latents


def encode_prompt(clip, prompt: str, references: list[Tensor], guidance: float) -> list:
    """ComfyUI CONDITIONING for a prompt with reference latents."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    values = {"guidance": guidance}
    if references:
        values["reference_latents"] = references
    return node_helpers.conditioning_set_values(conditioning, values)


@torch.inference_mode()
def sample(model, clip, vae, prompt: str, *, negative: str = "", steps: int = 0, guidance: float = 0.0,
           sampler: str = "euler", width: int = 1024, height: int = 1024, seed: int = 0, batch: int = 1,
           references: list[Tensor] = (), resize_references: bool = True) -> Tensor:  # fmt: skip
    """(B, H, W, 3) images in 0..1. References go on both sides of true CFG, as the official graphs wire them.

    Raises UserError for a MODEL that is not FLUX.2 and for sizes that are not multiples of 16.
    """
    identify.require_flux2(model)
    if width % MULTIPLE or height % MULTIPLE:
        raise UserError(f"The size is {width}x{height}; FLUX.2 needs both sides to be multiples of {MULTIPLE}.")
    steps, strength = steps_for(model, steps), guidance_for(model, guidance)
    latents = encode_references(vae, list(references), resize_references)
    positive = encode_prompt(clip, prompt, latents, strength.embedded)
    _check_text(model, positive)
    uncond = encode_prompt(clip, negative, latents, strength.embedded) if strength.cfg != 1.0 else positive
    empty = torch.zeros((batch, 128, height // MULTIPLE, width // MULTIPLE),
                        device=comfy.model_management.intermediate_device())  # fmt: skip
    done = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(empty, seed), strength.cfg, comfy.samplers.sampler_object(sampler),
        sigmas(steps, width, height), positive, uncond, empty,
        callback=latent_preview.prepare_callback(model, steps), seed=seed,
    )  # fmt: skip
    return vae.decode(done)


def _check_text(model, conditioning: list) -> None:
    width, expected = conditioning[0][0].shape[-1], model.model.diffusion_model.params.context_in_dim
    if width != expected:
        raise UserError(
            f"The text encoder gives {width} numbers per token but this MODEL reads {expected}: they belong to "
            "different flavours. Wire MODEL and CLIP from the same Load FLUX.2."
        )
