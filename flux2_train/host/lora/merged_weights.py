"""Parts whose change depends on the weight (DoRA), as ComfyUI's patches, which see the weight when they are applied."""

from __future__ import annotations

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...adapters import dora
from ...adapters.parts import Part, mapped


class Merging(WeightAdapterBase):
    """A part as a ComfyUI weight adapter. Core copies it from its ``loaded_keys`` and ``weights``."""

    name = "flux2_train"

    def __init__(self, loaded_keys: set[str], weights: tuple[Part]):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(self, weight: Tensor, key, strength, strength_model, offset, function, *_, **__) -> Tensor:
        """``weight`` (out, in), changed in place: ``W + strength * (W1 - W)``, computed in fp32."""
        part = mapped(self.weights[0], lambda tensor: tensor.to(weight.device, torch.float32))
        weight += function((strength * dora.change(part, weight.float())).to(weight.dtype))
        return weight


def merging(part: Part) -> Merging:
    """The patch to give to ``add_patches`` for a part of one Linear."""
    return Merging(set(), (part,))
