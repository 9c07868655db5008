"""A graph's MODEL, CLIP and VAE as settings of Load FLUX.2, and what those settings cannot express."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..formats import AS_IN_FILE, CHOICES, DTYPES
from ..settings.model import ModelSettings
from . import identify
from .loading import files, weights

AUTO = "auto"
# Attributes of a ModelPatcher that hold changes made by ComfyUI's nodes and other packs.
CHANGES = {
    "patches": "patched weights (a LoRA, or another node's)",
    "object_patches": "replaced parts",
    "injections": "injected code",
    "wrappers": "wrappers around its steps",
    "hook_patches": "hooks",
    "weight_wrapper_patches": "wrapped weights",
}


def text_encoder_file(clip: CLIP) -> str:
    """Load FLUX.2's name for a CLIP's file, empty if the file is unknown or the CLIP is patched."""
    return _file("text_encoders", clip.patcher)


def vae_file(vae: VAE) -> str:
    """Load FLUX.2's name for a VAE's file, empty if the file is unknown or the VAE is patched."""
    return _file("vae", vae.patcher)


def _file(folder: str, patcher: ModelPatcher) -> str:
    path = identify.path_of(patcher)
    return files.name_of(folder, path) if path and not patcher.patches else ""


def describe(model: ModelPatcher, text_encoder: str, vae: str) -> tuple[ModelSettings, tuple[str, ...]]:
    """Load FLUX.2's settings for a graph, and a few words on each thing that they cannot express."""
    row, path, precision = identify.flavour_of(model), identify.path_of(model), precision_of(model)
    unknown = [f"the MODEL has {what}" for what in changes(model)]
    if row is None:
        unknown.append("the MODEL is of no known flavour")
    if path is None:
        unknown.append("the MODEL does not say which file it came from")
    if precision is None:
        unknown.append("the MODEL's loader was given options that Load FLUX.2 does not have")
    if not text_encoder:
        unknown.append("the embeds do not say which text encoder file made them")
    if not vae:
        unknown.append("the latents do not say which VAE file made them")
    default = ModelSettings()
    described = ModelSettings(
        row.name if row else default.flavour,
        precision or default.precision,
        identify.variant_of(model) or AUTO,
        files.name_of("diffusion_models", path) if path else AUTO,
        text_encoder or AUTO,
        vae or AUTO,
    )
    return described, tuple(unknown)


def changes(model: ModelPatcher) -> list[str]:
    """How a MODEL was changed after it was loaded, in words."""
    changed = [what for name, what in CHANGES.items() if getattr(model, name, None)]
    options = {name: value for name, value in model.model_options.items() if value}
    return [*changed, *(["changed options"] if options else [])]


def lora_warning(model: ModelPatcher) -> str:
    """A warning to show when training on a MODEL that carries a LoRA; empty for any other."""
    weights = len(getattr(model, "patches", {}))
    if not weights and not getattr(model, "injections", {}):
        return ""
    where = f" on {weights} weights" if weights else ""
    return (
        f"The MODEL wired in already carries a LoRA{where}: the new one is trained on top of it and needs it to look "
        "the same. To train on the base alone, wire MODEL of Load FLUX.2 straight into LoRA Trainer."
    )


def precision_of(model: ModelPatcher) -> str | None:
    """The precision that Load FLUX.2 would have to be set to for this MODEL, ``None`` if none fits."""
    init = getattr(model, "cached_patcher_init", None)
    if init and len(init[1]) > 1 and init[1][1] in CHOICES:
        return init[1][1]
    options = dict(init[1][1]) if init and len(init[1]) > 1 and isinstance(init[1][1], dict) else {}
    dtype = options.pop("dtype", None)
    if options:
        return None
    return next((name for name in (AS_IN_FILE, *DTYPES) if weights.dtype_of(name) == dtype), None)
