"""What a LoRA file's header says about how to use it, kept with the tensors on their way through a graph."""

from __future__ import annotations

from torch import Tensor

REFERENCES = "flux2_train.references"  # the way of showing reference images that was trained with


class Tensors(dict):
    """A LoRA's tensors by key, as ComfyUI's LORA_MODEL, and the header of their file."""

    def __init__(self, tensors: dict[str, Tensor], header: dict[str, str]):
        super().__init__(tensors)
        self.header = header


def references_of(tensors: dict[str, Tensor]) -> str:
    """How reference images were shown to this LoRA; ``index``, ComfyUI's default, where nothing is said."""
    return getattr(tensors, "header", {}).get(REFERENCES, "index")
