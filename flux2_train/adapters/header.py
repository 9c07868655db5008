"""A LoRA file's tensors together with its header, which says how to use them, as they pass through a graph."""

from __future__ import annotations

from torch import Tensor

REFERENCES = "flux2_train.references"  # how reference images were shown in training


class Tensors(dict):
    """A LoRA's tensors by key, as ComfyUI's LORA_MODEL, and the header of their file."""

    def __init__(self, tensors: dict[str, Tensor], header: dict[str, str]):
        super().__init__(tensors)
        self.header = header


def references_of(tensors: dict[str, Tensor]) -> str:
    """How reference images were shown to this LoRA in training; ``index``, ComfyUI's way, if the header has nothing."""
    return getattr(tensors, "header", {}).get(REFERENCES, "index")
