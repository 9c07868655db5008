"""What a graph's MODEL, CLIP and VAE are, in the words of Load FLUX.2, and what cannot be said in them."""

from __future__ import annotations

from ..formats import AS_IN_FILE, CHOICES, DTYPES
from ..settings.model import ModelSettings
from . import identify
from .loading import files, weights

AUTO = "auto"
# Where core and other packs keep what they change about a model, beside its weights.
CHANGES = {
    "patches": "patched weights (a LoRA, or another node's)",
    "object_patches": "replaced parts",
    "injections": "injected code",
    "wrappers": "wrappers around its steps",
    "hook_patches": "hooks",
    "weight_wrapper_patches": "wrapped weights",
}


def text_encoder_file(clip) -> str:
    """The file of a CLIP as Load FLUX.2 would name it, empty where its output depends on more than that."""
    return _file("text_encoders", clip.patcher)


def vae_file(vae) -> str:
    """The file of a VAE as Load FLUX.2 would name it, empty where its output depends on more than that."""
    return _file("vae", vae.patcher)


def _file(folder: str, patcher) -> str:
    path = identify.path_of(patcher)
    return files.name_of(folder, path) if path and not patcher.patches else ""


def describe(model, text_encoder: str, vae: str) -> tuple[ModelSettings, tuple[str, ...]]:
    """Load FLUX.2's inputs for a graph, and a few words on everything they do not say."""
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


def changes(model) -> list[str]:
    """What has been done to a MODEL since it was loaded."""
    found = [what for name, what in CHANGES.items() if getattr(model, name, None)]
    options = {name: value for name, value in model.model_options.items() if value}
    return [*found, *(["changed options"] if options else [])]


def precision_of(model) -> str | None:
    """Load FLUX.2's name for how a MODEL's weights were asked to be stored, ``None`` where it has none."""
    init = getattr(model, "cached_patcher_init", None)
    if init and len(init[1]) > 1 and init[1][1] in CHOICES:
        return init[1][1]
    options = dict(init[1][1]) if init and len(init[1]) > 1 and isinstance(init[1][1], dict) else {}
    dtype = options.pop("dtype", None)
    if options:
        return None
    return next((name for name in (AS_IN_FILE, *DTYPES) if weights.dtype_of(name) == dtype), None)
