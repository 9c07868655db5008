"""ComfyUI's classes behind MODEL, CLIP and VAE, for the annotations of rooms that do not import ComfyUI."""

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

__all__ = ["CLIP", "VAE", "ModelPatcher"]
