"""How reference images are placed in time: ComfyUI's own methods, set on a MODEL instead of on a prompt."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

INDEX = "index"  # ComfyUI's default for FLUX.2
KEY = "flux2_train.references"


def with_references(model: ModelPatcher, method: str) -> ModelPatcher:
    """A clone of ``model`` that always places references by ``method``; for the default method, ``model`` itself."""
    if method == INDEX:
        return model

    def place(executor, *args, **kwargs):
        return executor(*args, **{**kwargs, "ref_latents_method": method})

    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, place)
    return clone
