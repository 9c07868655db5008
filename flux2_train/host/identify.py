"""What a MODEL in the graph is: FLUX.2 or not, which flavour, base or distilled."""

from __future__ import annotations

from pathlib import Path

import comfy.model_base

from ..errors import UserError
from ..flavours import BASE, DISTILLED, Flavour, by_sizes

VARIANT, FILE = "flux2_train.variant", "flux2_train.file"  # attachments, which ModelPatcher.clone() carries along


def require_flux2(model) -> None:
    """Raise UserError unless ``model`` is a FLUX.2, before any work is done."""
    core = model.model
    if isinstance(core, comfy.model_base.Flux2):
        return
    came = getattr(core.model_config, "unet_config", {}).get("image_model") or type(core).__name__
    raise UserError(
        f"This node needs a FLUX.2 model, but the MODEL wired in is {type(core).__name__} ({came}); "
        "wire Load FLUX.2, or Load Diffusion Model with a FLUX.2 file."
    )


def require_flavour(model, row: Flavour, file: str) -> None:
    """Raise UserError unless a freshly loaded MODEL is that flavour."""
    require_flux2(model)
    if sizes(model) != row.sizes:
        raise UserError(f"{file} is {flavour_name(model)}, not {row.name}: set flavour to match the file.")


def sizes(model) -> tuple[int, int, int, int]:
    """(hidden, double blocks, single blocks, context) of a FLUX.2 MODEL."""
    params = model.model.diffusion_model.params
    return params.hidden_size, params.depth, params.depth_single_blocks, params.context_in_dim


def flavour_of(model) -> Flavour | None:
    """The flavour by its sizes, ``None`` for a FLUX.2 of sizes nobody has released."""
    return by_sizes(sizes(model))


def flavour_name(model) -> str:
    """The flavour's name for messages and file metadata."""
    row = flavour_of(model)
    return row.name if row else f"FLUX.2 {'/'.join(map(str, sizes(model)))}"


def file_of(model) -> str:
    """Name of the file a MODEL was loaded from, empty where the loader did not leave it."""
    path = path_of(model)
    return path.name if path else ""


def path_of(patcher) -> Path | None:
    """The file a MODEL, or the patcher of a CLIP or VAE, was loaded from; ``None`` where nobody left it."""
    said = patcher.get_attachment(FILE)
    init = getattr(patcher, "cached_patcher_init", None)
    first = said or (init[1][0] if init and init[1] else None)
    if isinstance(first, (list, tuple)) and len(first) == 1:  # load_clip takes several files
        first = first[0]
    return Path(first) if isinstance(first, (str, Path)) else None


def has_guidance(model) -> bool:
    """Whether the transformer is told a guidance, as dev is."""
    return model.model.diffusion_model.params.guidance_embed


def variant_of(model) -> str | None:
    """``base`` or ``distilled``: as the user said at Load FLUX.2, else by file name, else ``None``."""
    said = model.get_attachment(VARIANT)
    if said:
        return said
    row, name = flavour_of(model), file_of(model)
    return row.variant_of(name) if row else None


def distilled_warning(model) -> str:
    """A sentence for whoever trains on a distilled model, empty otherwise."""
    row = flavour_of(model)
    if row is None or variant_of(model) != DISTILLED:
        return ""
    base = row.transformers[BASE][0].name
    return (
        f"This is the distilled {row.name}: training on it washes its few-step look out. "
        f"Train on {base} and use the LoRA on the distilled model afterwards."
    )
