"""What a MODEL in the graph is: FLUX.2 or not, which flavour, base or distilled."""

from __future__ import annotations

from pathlib import Path

import comfy.model_base
from comfy.model_patcher import ModelPatcher

from ..errors import UserError
from ..flavours import BASE, DISTILLED, Flavour, by_sizes

VARIANT, FILE = "flux2_train.variant", "flux2_train.file"  # names of attachments; ModelPatcher.clone() copies them


def require_flux2(model: ModelPatcher) -> None:
    """Raise UserError unless ``model`` is a FLUX.2, before any work is done."""
    core = model.model
    if isinstance(core, comfy.model_base.Flux2):
        return
    kind = getattr(core.model_config, "unet_config", {}).get("image_model") or type(core).__name__
    raise UserError(
        f"This node needs a FLUX.2 model, but the MODEL wired in is {type(core).__name__} ({kind}); "
        "wire Load FLUX.2, or Load Diffusion Model with a FLUX.2 file."
    )


def require_flavour(model: ModelPatcher, row: Flavour, file: str) -> None:
    """Raise UserError unless a freshly loaded MODEL is that flavour."""
    require_flux2(model)
    if sizes(model) != row.sizes:
        raise UserError(f"{file} is {flavour_name(model)}, not {row.name}: set flavour to match the file.")


def sizes(model: ModelPatcher) -> tuple[int, int, int, int]:
    """(hidden, double blocks, single blocks, context) of a FLUX.2 MODEL."""
    params = model.model.diffusion_model.params
    return params.hidden_size, params.depth, params.depth_single_blocks, params.context_in_dim


def flavour_of(model: ModelPatcher) -> Flavour | None:
    """The flavour with this MODEL's sizes, ``None`` if no released flavour has them."""
    return by_sizes(sizes(model))


def flavour_name(model: ModelPatcher) -> str:
    """The flavour's name for messages and file metadata."""
    row = flavour_of(model)
    return row.name if row else f"FLUX.2 {'/'.join(map(str, sizes(model)))}"


def file_of(model: ModelPatcher) -> str:
    """Name of the file a MODEL was loaded from, empty if its loader did not record it."""
    path = path_of(model)
    return path.name if path else ""


def path_of(patcher: ModelPatcher) -> Path | None:
    """The file a MODEL, or the patcher of a CLIP or VAE, was loaded from; ``None`` if no loader recorded it."""
    attached = patcher.get_attachment(FILE)
    init = getattr(patcher, "cached_patcher_init", None)
    path = attached or (init[1][0] if init and init[1] else None)
    if isinstance(path, (list, tuple)) and len(path) == 1:  # ComfyUI's load_clip takes a list of files
        path = path[0]
    return Path(path) if isinstance(path, (str, Path)) else None


def has_guidance(model: ModelPatcher) -> bool:
    """Whether the transformer takes guidance as an input, as dev's does."""
    return model.model.diffusion_model.params.guidance_embed


def variant_of(model: ModelPatcher) -> str | None:
    """``base`` or ``distilled``: as the user chose in Load FLUX.2, else by the file's name, else ``None``."""
    attached = model.get_attachment(VARIANT)
    if attached:
        return attached
    row, name = flavour_of(model), file_of(model)
    return row.variant_of(name) if row else None


def distilled_warning(model: ModelPatcher) -> str:
    """A warning to show when training on a distilled model; empty for any other."""
    row = flavour_of(model)
    if row is None or variant_of(model) != DISTILLED:
        return ""
    base = row.transformers[BASE][0].name
    return (
        f"This is the distilled {row.name}: training on it washes its few-step look out. "
        f"Train on {base} and use the LoRA on the distilled model afterwards."
    )
