"""Which Linears of a borrowed model are multiplied in 8 bits, and how far that is from their exact products.

The forwards of layers do not change. A layer that may be multiplied in 8 bits has a ``Slot``, which its product looks
at when it runs: eager, streamed, recomputed and compiled blocks, and all adapters, go through that product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...planning.certifying import Agreement
from ...planning.work import AT_ONCE
from . import int8
from .int8 import Numbers
from .streamed import SOURCE

SLOT = "flux2_train_eight_bit"  # attribute of a layer
Product = Callable[[Tensor, Numbers], Tensor]  # int8.product or int8.transposed_product


class EightBit:
    """The Linears inside a model's blocks: how many there ``are``, and the names for which 8 bits are ``possible``.

    The ``chosen`` ones are multiplied in 8 bits inside ``acting``. Always exact are other packs' layers, those with a
    LoRA of ComfyUI's or a scale on their input, and those whose features are no multiples of 32. If it ``keeps`` them,
    int8 numbers of weights that are not streamed are made once, and not for each product; all take ``copies`` bytes.
    """

    def __init__(self, model: ModelPatcher):
        layers = {name: m for name, m in model.model.diffusion_model.named_modules() if _is_inside_block(name, m)}
        self.are = len(layers)
        patched = model.patches.keys()
        self.possible = tuple(
            name for name, m in layers.items() if _can(m) and f"diffusion_model.{name}.weight" not in patched
        )
        stored = {name for name in self.possible if int8.stored(layers[name].weight)}
        self.copies = sum(layers[n].in_features * layers[n].out_features for n in self.possible if n not in stored)
        self.chosen: Collection[str] = ()
        self.keeps = False
        self.kept: dict[str, Numbers] = {}
        self.acts = False
        self.sums: dict[str, dict[Product, Tensor]] | None = None  # while products are compared
        self.attached: list[nn.Module] = []

    def keep(self, on: bool) -> None:
        """Keep int8 numbers from now on, and of those that are kept the chosen layers' alone; or none."""
        self.keeps = on
        self.kept = {name: numbers for name, numbers in self.kept.items() if on and name in self.chosen}

    def attach(self, layers: dict[str, nn.Module]) -> None:
        """Give the layers their slots, until ``forget``. They may have been moved or patched since the last time."""
        self.kept.clear()
        for name in self.possible:
            if _can(layers[name]):
                layers[name].__dict__[SLOT] = Slot(self, name)
                self.attached.append(layers[name])

    def forget(self) -> None:
        """Take the slots away: the layers are ComfyUI's again."""
        self.kept.clear()
        while self.attached:
            self.attached.pop().__dict__.pop(SLOT, None)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, the chosen layers are multiplied in 8 bits. Outside, in validation and previews, all are exact."""
        self.acts = True
        try:
            yield
        finally:
            self.acts = False

    @contextmanager
    def comparing(self) -> Iterator[dict[str, Agreement]]:
        """Inside, products are exact and those in 8 bits are computed beside them, from the same inputs.

        Fills the dictionary, when it ends, with the worse of each layer's outputs and input gradients.
        """
        found: dict[str, Agreement] = {}
        self.sums = {}
        try:
            yield found
            for name, both in self.sums.items():
                found[name] = Agreement.worst([_agreement(sums) for sums in both.values()])
        finally:
            self.sums = None


class Slot(NamedTuple):
    """What a layer's product looks at."""

    owner: EightBit
    name: str

    @property
    def acts(self) -> bool:
        """Whether the layer is multiplied in 8 bits now."""
        return self.owner.acts and self.name in self.owner.chosen

    @property
    def kept(self) -> Numbers | None:
        """The int8 numbers of the layer's weight that are kept."""
        return self.owner.kept.get(self.name)

    def keep(self, layer: nn.Module, numbers: Numbers) -> Numbers:
        """``numbers``, which are kept where that is wanted and the weight stays where it is."""
        if self.owner.keeps and SOURCE not in layer.__dict__ and layer._parameters.get("bias") is None:
            self.owner.kept[self.name] = numbers
        return numbers

    @property
    def compares(self) -> bool:
        """Whether the layer is multiplied in both ways now."""
        return self.owner.sums is not None

    def compare(self, multiplied: Product, x: Tensor, weight: Numbers, exact: Tensor) -> None:
        """Add to what is known of the layer: ``exact`` (R, out) is what 8 bits should give for ``x`` (R, in)."""
        sums = 0.0
        step = max(1, AT_ONCE // max(x.shape[1], exact.shape[1]))
        for inputs, outputs in zip(x.split(step), exact.split(step), strict=True):
            own = multiplied(inputs, weight)
            norms = [_norm(own - outputs), _norm(outputs), _norm(own)]
            sums = sums + torch.stack(norms).double().square()
        of_layer = self.owner.sums.setdefault(self.name, {})
        of_layer[multiplied] = of_layer.get(multiplied, 0.0) + sums


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _agreement(sums: Tensor) -> Agreement:
    return Agreement.of(*sums.sqrt().tolist())


def _is_inside_block(name: str, module: nn.Module) -> bool:
    return "_blocks." in name and hasattr(module, "in_features") and hasattr(module, "weight")


def _can(layer: nn.Module) -> bool:
    """Whether a layer multiplies by a weight that is its own, and whose sizes fit."""
    changed = getattr(layer, "weight_function", ()) or "pre_quant_scale" in layer._parameters
    changed = changed or getattr(layer, "weight_lowvram_function", None) is not None
    return type(layer).__module__ == "comfy.ops" and not changed and int8.fits(layer.in_features, layer.out_features)
