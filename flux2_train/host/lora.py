"""Putting a LoRA on a MODEL: merged into the weights by ComfyUI's patches, or beside them in bypass."""

from __future__ import annotations

import uuid

import comfy.lora
import comfy.lora_convert
import comfy.sd
import torch
import torch.nn.functional as F
from comfy.patcher_extension import PatcherInjection
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..errors import UserError
from .borrow import linears
from .identify import flavour_name, require_flux2

MERGED, BYPASS, AUTO = "merged", "bypass", "auto"
MODES = (AUTO, MERGED, BYPASS)


def patches(model, weights: dict[str, Tensor]) -> dict:
    """ComfyUI's own reading of a LoRA file for this MODEL. Raises UserError naming keys that match nothing."""
    converted = comfy.lora_convert.convert_lora(weights)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(converted, keys, log_missing=False)
    used = {key for patch in loaded.values() for key in getattr(patch, "loaded_keys", ())}
    used |= {key for key in converted if key.rpartition(".")[0] in keys}  # .diff, .alpha and the like
    unmatched = sorted(converted.keys() - used)
    if unmatched or not loaded:
        names = ", ".join(unmatched[:3]) or "it has no LoRA keys"
        raise UserError(
            f"{len(unmatched)} of {len(converted)} keys of this LoRA match nothing in {flavour_name(model)} ({names}): "
            "it was made for another model."
        )
    _check_sizes(model, loaded)
    return loaded


def describe(model, weights: dict[str, Tensor], strength: float, mode: str) -> str:
    """One line on a LoRA that ``apply`` accepted: keys matched, layers, how it acts."""
    how = chosen_mode(model, mode)
    return f"{len(weights)}/{len(weights)} keys on {len(patches(model, weights))} layers, {how}, strength {strength:g}"


def chosen_mode(model, mode: str) -> str:
    """``auto`` bypasses on quantised models, where merging would round the LoRA away, and merges on others."""
    return mode if mode != AUTO else BYPASS if is_quantised(model) else MERGED


def _layer_name(key: str) -> str:
    """The Linear's name in the transformer for a key of ComfyUI's patches."""
    return key.removeprefix("diffusion_model.").removesuffix(".weight")


def _check_sizes(model, loaded: dict) -> None:
    layers = linears(model)
    for key, patch in loaded.items():
        if not isinstance(key, str) or getattr(patch, "name", "") != "lora":
            continue
        layer = layers.get(_layer_name(key))
        up, down = patch.weights[0], patch.weights[1]
        if layer is not None and (up.shape[0], down.shape[-1]) != (layer.out_features, layer.in_features):
            raise UserError(
                f"This LoRA was trained on another FLUX.2 flavour: {key} is {layer.out_features}x{layer.in_features} "
                f"in {flavour_name(model)}, the LoRA's is {up.shape[0]}x{down.shape[-1]}."
            )


def apply(model, weights: dict[str, Tensor], strength: float, mode: str = AUTO):
    """A clone of ``model`` with the LoRA at ``strength``; ``model`` itself stays as it is.

    Raises UserError if a key of the LoRA matches nothing, or if it cannot act in that mode.
    """
    require_flux2(model)
    loaded = patches(model, weights)
    if strength == 0:
        return model
    clone = model.clone()
    if chosen_mode(model, mode) == MERGED:
        clone.add_patches(loaded, strength)
        return clone
    odd = [k for k, p in loaded.items() if not (isinstance(k, str) and _is_plain_lora(p))]
    if odd:
        raise UserError(
            f"{len(odd)} of {len(loaded)} parts of this LoRA are not plain low-rank pairs on whole layers "
            f"({odd[0]}), which bypass cannot carry; set mode to 'merged'."
        )
    bypass = _Bypass(model, loaded, strength)
    injection = PatcherInjection(inject=lambda _: bypass.inject(), eject=lambda _: bypass.eject())
    clone.set_injections(f"flux2_train.bypass.{uuid.uuid4()}", [injection])
    return clone


def _is_plain_lora(patch) -> bool:
    """Up, down and alpha, without a middle matrix, DoRA scale or reshaping."""
    return getattr(patch, "name", "") == "lora" and not any(part is not None for part in patch.weights[3:6])


def is_quantised(model) -> bool:
    """True if any Linear's weight is stored in a quantised or 8-bit format."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    weights = [layer.weight for layer in linears(model).values()]
    return any(isinstance(weight, QuantizedTensor) or weight.dtype not in floats for weight in weights)


class _Bypass:
    """A LoRA computed beside the Linears it sits on. Any number may sit on one Linear, put on and off in any order."""

    def __init__(self, model, loaded: dict, strength: float):
        layers = linears(model)
        self.parts = [(layers[_layer_name(key)], _Contribution(patch, strength)) for key, patch in loaded.items()]

    def inject(self) -> None:
        for layer, part in self.parts:
            if not isinstance(layer.__dict__.get("forward"), _Chain):
                layer.forward = _Chain(layer)
            if part not in layer.forward.parts:
                layer.forward.parts.append(part)

    def eject(self) -> None:
        for layer, part in self.parts:
            chain = layer.__dict__.get("forward")
            if isinstance(chain, _Chain) and part in chain.parts:
                chain.parts.remove(part)
                if not chain.parts:
                    chain.restore()


class _Chain:
    """A Linear's forward with LoRA contributions added; ``previous`` is what another pack had put there."""

    def __init__(self, layer: nn.Module):
        self.layer, self.parts = layer, []
        self.previous = layer.__dict__.get("forward")
        self.forward = self.previous or type(layer).forward.__get__(layer)

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        y = self.forward(x, *args, **kwargs)
        for part in self.parts:
            y = y + part(x)
        return y

    def restore(self) -> None:
        if self.previous is None:
            del self.layer.forward
        else:
            self.layer.forward = self.previous


class _Contribution:
    """``strength * alpha / rank * B A x`` of a LoRA adapter as ComfyUI read it (up, down, alpha, ...)."""

    def __init__(self, patch, strength: float):
        self.up, self.down, alpha = patch.weights[:3]
        self.scale = strength * (alpha / self.down.shape[0] if alpha is not None else 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        if self.up.device != x.device or self.up.dtype != x.dtype:  # once: kept where the model computes
            self.up, self.down = self.up.to(x), self.down.to(x)
        return F.linear(F.linear(x, self.down), self.up) * self.scale
