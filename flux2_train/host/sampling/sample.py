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
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_extras.nodes_flux import get_schedule
from torch import Tensor

from ...errors import UserError
from ...flavours import BASE, DISTILLED
from ...geometry import MULTIPLE, at_most
from .. import contract, identify
from .references import INDEX

REFERENCE_PIXELS = 1024 * 1024


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed: ``embedded`` is fed to the model, ``cfg`` mixes two predictions."""

    embedded: float
    cfg: float


def guidance_for(model: ModelPatcher, chosen: float) -> Guidance:
    """The chosen guidance as this model takes it; 0 chooses the flavour's default.

    dev takes it as an input; klein base mixes predictions for the prompt and the negative one; distilled klein ignores
    it.
    """
    row = identify.flavour_of(model)
    value = chosen or (row.guidance if row else 4.0)
    if identify.has_guidance(model):
        return Guidance(value, 1.0)
    return Guidance(value, 1.0 if identify.variant_of(model) == DISTILLED else value)


def steps_for(model: ModelPatcher, chosen: int) -> int:
    """The number of sampling steps; 0 chooses what the flavour and variant were made for."""
    row = identify.flavour_of(model)
    return chosen or (row.steps[identify.variant_of(model) or BASE] if row else 20)


def sigmas(steps: int, width: int, height: int) -> Tensor:
    """(steps + 1,) noise levels from 1 to 0, from Black Forest Labs' empirical mu, equal to core's Flux2Scheduler."""
    return get_schedule(steps, round(width * height / MULTIPLE**2))


def encode_references(vae: VAE, images: list[Tensor], resize: bool) -> list[Tensor]:
    """Latents of reference images (B, H, W, 3); with ``resize``, those above a megapixel are scaled down to it."""
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


def encode_prompt(clip: CLIP, prompt: str) -> list:
    """ComfyUI CONDITIONING of a prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def conditioned(conditioning: list, references: list[Tensor], guidance: float, method: str = INDEX) -> list:
    """CONDITIONING with embedded guidance and reference latents; ``method`` is ComfyUI's name for their placing."""
    values = {"guidance": guidance}
    if references:
        values["reference_latents"] = references
        if method != INDEX:
            values["reference_latents_method"] = method
    return node_helpers.conditioning_set_values(conditioning, values)


def conditions(
    model: ModelPatcher, clip: CLIP, prompt: str, negative: str, references: list[Tensor], guidance: float
) -> tuple[list, list]:
    """CONDITIONING of prompt and negative prompt; where guidance does not mix two predictions, the prompt's twice."""
    contract.require(contract.SAMPLING)
    strength = guidance_for(model, guidance)

    def encoded(text: str) -> list:
        return conditioned(encode_prompt(clip, text), references, strength.embedded)

    positive = encoded(prompt)
    return positive, encoded(negative) if strength.cfg != 1.0 else positive


def interruptible(*_) -> None:
    """A sampler's callback that only raises ComfyUI's interrupt if the user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


@dataclass(frozen=True)
class PaintSettings:
    """How pictures are painted; 0 for ``steps`` or ``guidance`` chooses what the MODEL was made for.

    ``width`` and ``height`` are in pixels; the ``batch`` pictures start from different noise of one ``seed``.
    """

    steps: int = 0
    guidance: float = 0.0
    sampler: str = "euler"
    width: int = 1024
    height: int = 1024
    seed: int = 0
    batch: int = 1

    def require_for(self, model: ModelPatcher) -> None:
        """Raise UserError if the MODEL is not FLUX.2, a size is no multiple of 16, or the sampler is unknown."""
        identify.require_flux2(model)
        if self.sampler not in comfy.samplers.SAMPLER_NAMES:
            raise UserError(f"There is no sampler {self.sampler!r}; euler is what FLUX.2 was made with.")
        if self.width % MULTIPLE or self.height % MULTIPLE:
            raise UserError(
                f"The size is {self.width}x{self.height}; FLUX.2 needs both sides to be multiples of {MULTIPLE}."
            )


def denoise(
    model, positive: list, negative: list, settings: PaintSettings, callback=None, quiet: bool = False
) -> Tensor:
    """(B, 128, H/16, W/16) latents. ``negative`` is used only if guidance mixes two predictions.

    ``callback`` is ComfyUI's, called after every step; ``quiet`` hides the progress bar in the console.
    """
    steps, strength = steps_for(model, settings.steps), guidance_for(model, settings.guidance)
    _check_text(model, positive)
    empty = torch.zeros((settings.batch, 128, settings.height // MULTIPLE, settings.width // MULTIPLE),
                        device=comfy.model_management.intermediate_device())  # fmt: skip
    return comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(empty, settings.seed), strength.cfg,
        comfy.samplers.sampler_object(settings.sampler), sigmas(steps, settings.width, settings.height),
        positive, negative if strength.cfg != 1.0 else positive, empty,
        callback=callback, disable_pbar=quiet, seed=settings.seed,
    )  # fmt: skip


@torch.inference_mode()
def sample(model: ModelPatcher, clip: CLIP, vae: VAE, prompt: str, *, negative: str = "", references: list[Tensor] = (),
           resize_references: bool = True, **settings) -> Tensor:  # fmt: skip
    """(B, H, W, 3) images in 0..1; ``settings`` are the fields of ``PaintSettings``.

    Both predictions of true CFG get the references, as in the official graphs. Raises UserError as
    ``PaintSettings.require_for``, and for a text encoder of another flavour.
    """
    paint = PaintSettings(**settings)
    paint.require_for(model)
    latents = encode_references(vae, list(references), resize_references)
    positive, uncond = conditions(model, clip, prompt, negative, latents, paint.guidance)
    callback = latent_preview.prepare_callback(model, steps_for(model, paint.steps))
    return vae.decode(denoise(model, positive, uncond, paint, callback))


def _check_text(model: ModelPatcher, conditioning: list) -> None:
    width, expected = conditioning[0][0].shape[-1], model.model.diffusion_model.params.context_in_dim
    if width != expected:
        raise UserError(
            f"The text encoder gives {width} numbers per token but this MODEL reads {expected}: they belong to "
            "different flavours. Wire MODEL and CLIP from the same Load FLUX.2."
        )
