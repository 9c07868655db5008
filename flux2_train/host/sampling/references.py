"""At which time reference images are shown while sampling: ComfyUI's own ways, set on a MODEL instead of a prompt."""

from __future__ import annotations

from comfy.patcher_extension import WrappersMP

INDEX = "index"  # ComfyUI's default for FLUX.2
KEY = "flux2_train.references"


def with_references(model, method: str):
    """A clone of ``model`` that places references by ``method`` wherever it is sampled; the default needs no clone."""
    if method == INDEX:
        return model

    def place(executor, *args, **kwargs):
        return executor(*args, **{**kwargs, "ref_latents_method": method})

    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, place)
    return clone
