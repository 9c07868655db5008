"""Proof that a saved LoRA acts: the file, loaded back by ComfyUI's own loader, against the adapter that was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..adapters import read, write
from ..adapters.dora import is_dora
from ..adapters.parts import Delta, Part, size_of
from ..errors import UserError
from . import lora
from .borrow import borrow
from .identify import flavour_name
from .velocity import Condition, velocity

# How far from 1 the effect may be: what rounding the matrices to that precision can do, with room for the model's own.
TOLERANCE = {"bf16": 0.02, "fp16": 0.01, "fp32": 0.01}
MOST_NOISE = 0.05
LARGEST_LATENT = 16  # tokens per side: a certificate costs three small forwards


@dataclass(frozen=True)
class Case:
    """The prediction that is compared: ``x_t`` (1, 128, h, w) at time ``t`` (1,) under a condition."""

    x_t: Tensor
    t: Tensor
    condition: Condition


@dataclass(frozen=True)
class Certificate:
    """``matched`` of ``total`` layers were found by the loader ``through``; ``effect`` 1 is the live adapter's.

    ``effect`` is the projection of the loaded change of the prediction on the live one, ``<loaded, live> / |live|^2``;
    ``error`` is ``|loaded - live| / |live|``. It may be off 1 by ``tolerance``, which is the saved precision's, and by
    ``noise``: a base that quantises its activations (int8, 4 bit) answers the smallest difference with jumps, which
    shorten a projection by half their square.
    """

    matched: int
    total: int
    effect: float
    error: float
    tolerance: float
    through: str

    def __str__(self) -> str:
        return f"{self.matched}/{self.total} keys, effect {self.effect:.2f} ({self.through})"

    @property
    def noise(self) -> float:
        """Half the square of the error across the live change; a wrong strength has none of it."""
        return min(MOST_NOISE, max(0.0, self.error**2 - (self.effect - 1) ** 2) / 2)

    @property
    def holds(self) -> bool:
        """Every layer found and the effect within the tolerance."""
        return self.matched == self.total and abs(self.effect - 1) <= self.tolerance + self.noise


def certify(
    model, deltas: dict[str, Delta], parts: dict[str, Part], path: Path, case: Case, tolerance: float
) -> Certificate:
    """Load ``path`` back and compare its effect on one prediction with that of the live adapters ``deltas``.

    The loader is ComfyUI's bypass, which leaves the weights alone and acts on any storage format; its merging loader
    for DoRA, which the stock bypass would drop; LoRA Apply where neither can carry the file (DoRA on a quantised model,
    peft's folder). Costs three small forwards; the model is left as it was, offloaded or not. Raises nothing: look at
    ``holds``.
    """
    with torch.inference_mode():
        base = _predict(model, case)
        with borrow(model, deltas) as borrowed:
            live = _predict(borrowed, case, load=False) - base
        loaded, matched, through = _load(model, parts, path)
        try:
            found = _predict(loaded, case) - base
        finally:
            comfy.model_management.load_models_gpu([model])  # undoes what a merging loader did to the weights
    square = live.square().sum().item()
    if not square:  # not trained yet: then the file must do nothing either
        effect, error = (1.0, 0.0) if not found.any() else (0.0, float("inf"))
    else:
        effect = (found * live).sum().item() / square
        error = ((found - live).square().sum().item() / square) ** 0.5
    return Certificate(matched, len(parts), effect, error, tolerance, through)


def require(certificate: Certificate, model, parts: dict[str, Part], path: Path) -> None:
    """Raise UserError naming what differs unless the certificate holds."""
    if certificate.holds:
        return
    within = f"{certificate.tolerance + certificate.noise:.2g}"
    raise UserError(
        f"{path.name} does not act like the adapter that was trained: {certificate}, expected 1.00 within {within}. "
        f"{_differences(model, parts, path)} The file is kept; please report this."
    )


def _predict(model, case: Case, load: bool = True) -> Tensor:
    if load:
        comfy.model_management.load_models_gpu([model])
    device = model.load_device
    return velocity(model, case.x_t.to(device), case.t.to(device), [case.condition]).float().cpu()


def _load(model, parts: dict[str, Part], path: Path) -> tuple[object, int, str]:
    decomposed = any(map(is_dora, parts.values()))
    if path.name == "adapter_model.safetensors" or (decomposed and lora.is_quantised(model)):
        loaded = lora.read(model, read.load(path), allow_unmatched=True)
        return lora.put(model, loaded, 1.0, lora.BYPASS), len(loaded.parts), "LoRA Apply"
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    matched = len(comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys, log_missing=False))
    stock = comfy.sd.load_lora_for_models if decomposed else comfy.sd.load_bypass_lora_for_models
    loaded, _ = stock(model, None, tensors, 1.0, 0.0)
    return loaded, matched, "stock loader, merged" if decomposed else "stock loader, bypass"


def _differences(model, parts: dict[str, Part], path: Path) -> str:
    """What is wrong with the file layer by layer, as far as the file itself tells."""
    found, _ = read.read(read.load(path), lora.sizes(model), flavour_name(model))
    if missing := [name for name in parts if name not in found]:
        return f"It lacks {len(missing)} layers ({', '.join(missing[:3])})."
    generator = torch.Generator().manual_seed(0)
    other = []
    for name, part in parts.items():
        x = torch.randn(4, size_of(part)[0], generator=generator)
        wanted, got = part(x), found[name](x)
        if (got - wanted).norm() > 0.1 * wanted.norm():
            other.append(name)
    if other:
        return f"{len(other)} layers in it have other numbers ({', '.join(other[:3])})."
    kinds = ", ".join(sorted({write.kind(part) for part in parts.values()}))
    return f"Every layer in it has the right numbers, so this ComfyUI's loader reads {kinds} otherwise."
