"""Putting a LoRA on a MODEL: merged into the weights by ComfyUI's patches, or computed beside them (bypass).

A LoRA file of any format is read once into parts (``adapters.read``), which both modes use. Merging gives them to
ComfyUI's own loader. Bypass is computed here, because ComfyUI's bypass drops DoRA's magnitudes and split q, k and v.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import comfy.lora
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...adapters import beside, dora, others, write, writers
from ...adapters import read as reading
from ...adapters.dora import Weights
from ...adapters.header import references_of
from ...adapters.names import Sizes
from ...adapters.parts import Part
from ...adapters.patterns import restricted
from ...errors import UserError
from ...names import counted
from .. import contract
from ..borrowed.borrow import linears
from ..borrowed.frozen import fetched
from ..identify import flavour_name, require_flux2
from ..loading import deferred
from ..sampling.references import INDEX, with_references
from ..system.memory import load
from .merged_weights import merging

MERGED, BYPASS, AUTO = "merged", "bypass", "auto"
MODES = (AUTO, MERGED, BYPASS)
HOW = {MERGED: "merged into the weights", BYPASS: "computed beside the weights (bypass)"}


@dataclass(frozen=True)
class Loaded:
    """A LoRA file as read for a MODEL.

    ``parts`` are by Linear name. ``others`` are changes of other weights by name: ComfyUI's own trainer also trains
    norms. ``keys`` of ``total`` keys in the file matched. ``references`` is how reference images were placed in
    training, ``note`` what had to be assumed about the file.
    """

    parts: dict[str, Part]
    others: dict[str, Tensor]
    keys: int
    total: int
    references: str = INDEX
    note: str = ""


def sizes(model: ModelPatcher) -> Sizes:
    """(in features, out features) of every Linear of a MODEL's transformer."""
    return {name: (layer.in_features, layer.out_features) for name, layer in linears(model).items()}


def read(model: ModelPatcher, weights: dict[str, Tensor], allow_unmatched: bool = False) -> Loaded:
    """A LoRA file's tensors (``adapters.read.load``) as parts for this MODEL.

    Raises UserError for a MODEL that is not FLUX.2, for a LoRA of another flavour, and for keys that match nothing
    unless those are allowed.
    """
    require_flux2(model)
    parts, unmatched = reading.read(weights, sizes(model), flavour_name(model))
    state = model.model.diffusion_model.state_dict()
    names = others.norm_changes(unmatched, state)
    changes = {name: weights[key] for key, name in names.items() if _fits(weights[key], state[name])}
    unmatched = [key for key in unmatched if names.get(key) not in changes]
    if not allow_unmatched or not parts:
        reading.require_matched(unmatched, len(weights), flavour_name(model))
    matched = len(weights) - len(unmatched)
    return Loaded(parts, changes, matched, len(weights), references_of(weights), writers.assumed(weights))


def _fits(change: Tensor, weight: Tensor | None) -> bool:
    return weight is not None and not isinstance(weight, QuantizedTensor) and weight.shape == change.shape


def on_layers(loaded: Loaded, include: str = "", exclude: str = "") -> Loaded:
    """The LoRA restricted to layers that ``include`` matches and ``exclude`` does not.

    Both are glob patterns separated by commas; an empty one does not restrict. Raises UserError naming a pattern that
    matches no layer of the LoRA.
    """
    if not include.strip() and not exclude.strip():
        return loaded
    names = restricted([*loaded.parts, *loaded.others], include, exclude, "this LoRA")
    parts = {name: part for name, part in loaded.parts.items() if name in names}
    return replace(loaded, parts=parts, others={name: v for name, v in loaded.others.items() if name in names})


def trainable(model: ModelPatcher, tensors: dict[str, Tensor]) -> dict[str, Part]:
    """A LoRA file's tensors as parts that training can continue from; DoRA in the form of its paper.

    Raises UserError as ``read`` does, and for a LoRA that also changes weights other than Linears.
    """
    loaded = read(model, tensors)
    if loaded.others:
        names = ", ".join(sorted(loaded.others)[:3])
        raise UserError(f"The LoRA to start from also changes {names}, which cannot be trained on; merge it instead.")
    return dora.with_norm(loaded.parts, weights(model), of_base=False)


def describe(model: ModelPatcher, loaded: Loaded, strength: float, mode: str) -> str:
    """One line about a LoRA on a MODEL: its kinds, layers, tensors that fit, mode and strength."""
    kinds = "+".join(sorted({write.kind(part) for part in loaded.parts.values()}))
    fits = f"all {loaded.total}" if loaded.keys == loaded.total else f"{loaded.keys} of {loaded.total}"
    how = HOW[chosen_mode(model, mode)]
    note = f"; {loaded.note}" if loaded.note else ""
    layers = counted(len(loaded.parts), "layer")
    return f"{kinds} on {layers} ({fits} tensors of the file fit), {how}, strength {strength:g}{note}"


def chosen_mode(model: ModelPatcher, mode: str) -> str:
    """The mode to use; ``auto`` is bypass on quantised models, where merging would round the LoRA away, else merged."""
    return mode if mode != AUTO else BYPASS if is_quantised(model) else MERGED


def is_quantised(model: ModelPatcher) -> bool:
    """True if any Linear's weight is stored in a quantised or 8-bit format."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    weights = [layer.weight for layer in linears(model).values()]
    return any(isinstance(weight, QuantizedTensor) or weight.dtype not in floats for weight in weights)


def apply(
    model: ModelPatcher,
    weights: dict[str, Tensor],
    strength: float,
    mode: str = AUTO,
    include: str = "",
    exclude: str = "",
) -> ModelPatcher:
    """A clone of ``model`` with a LoRA file's tensors at ``strength``: ``read``, ``on_layers`` and ``put`` in one."""
    return put(model, on_layers(read(model, weights), include, exclude), strength, mode)


def put(model: ModelPatcher, loaded: Loaded, strength: float, mode: str = AUTO) -> ModelPatcher:
    """A clone of ``model`` with the LoRA at ``strength``; ``model`` itself stays as it is.

    ``W' = W + strength * (W1 - W)``, where ``W1`` is the weight with the LoRA at strength 1. Except for DoRA this
    equals ``W + strength * dW``. Reference images are placed as they were in the LoRA's training. Raises UserError if
    the LoRA cannot be merged.
    """
    contract.require(contract.LORAS)
    if strength == 0:
        return model
    clone = with_references(model, loaded.references).clone()
    clone.add_patches({f"diffusion_model.{n}": ("diff", (change,)) for n, change in loaded.others.items()}, strength)
    if chosen_mode(model, mode) == MERGED:
        clone.add_patches(_patches(model, loaded.parts), strength)
        return clone
    bypass = _Bypass(model, loaded.parts, strength)
    injection = PatcherInjection(inject=lambda _: bypass.inject(), eject=lambda _: bypass.eject())
    clone.set_injections(f"flux2_train.bypass.{uuid.uuid4()}", [injection])
    return clone


def _patches(model: ModelPatcher, parts: dict[str, Part]) -> dict:
    """The LoRA as ComfyUI's patches: its own adapters, or ours for parts whose change depends on the weight (DoRA)."""
    layers = linears(model)
    for name in parts:
        if getattr(layers[name], "pre_quant_scale", None) is not None:
            raise UserError(f"{name} scales its input (AWQ), so a LoRA merged into it acts wrongly; use mode 'bypass'.")
    own = {f"diffusion_model.{n}.weight": merging(part) for n, part in parts.items() if dora.needs_weight(part)}
    tensors = write.tensors({n: p for n, p in parts.items() if not dora.needs_weight(p)}, "comfyui", torch.float32)
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False) | own
    missing = parts.keys() - {layer_name(key) for key in patches}
    if missing:
        raise UserError(f"This ComfyUI cannot merge the LoRA at {', '.join(sorted(missing)[:3])}; use mode 'bypass'.")
    return patches


def layer_name(key: str | tuple) -> str:
    """The Linear's name in the transformer for a key of ComfyUI's patches."""
    name = key if isinstance(key, str) else key[0]
    return name.removeprefix("diffusion_model.").removesuffix(".weight")


def weights(model: ModelPatcher) -> Weights:
    """A function that gives a MODEL's weights one by one, with its own LoRAs, for ``adapters.dora`` and ``plain``.

    Clones of a MODEL share their weights, and the clone that was loaded last has merged its LoRAs into them. So this
    MODEL is loaded first if another clone was the last.
    """
    layers = linears(model)

    @contextmanager
    def of(name: str) -> Iterator[Tensor]:
        deferred.fill(model.model)
        load(model)
        with fetched(layers[name], torch.float32, model.load_device) as (weight, _):
            yield weight

    return of


def row_norms(model: ModelPatcher) -> Callable[[str], Tensor]:
    """A function from a Linear's name to the L2 norms of its weight's rows (out,): the start of DoRA's magnitudes."""
    own = weights(model)

    def norms(name: str) -> Tensor:
        with own(name) as weight:
            return torch.linalg.vector_norm(weight, dim=1).clone()

    return norms


class _Bypass:
    """A LoRA computed beside its Linears by forward hooks.

    A Linear may have any number of them, also if another pack has replaced its forward; they are removed in any order.
    """

    def __init__(self, model: ModelPatcher, parts: dict[str, Part], strength: float):
        layers = linears(model)
        self.sites = [(layers[name], part) for name, part in parts.items()]
        self.strength, self.handles = strength, []

    def inject(self) -> None:
        if not self.handles:  # ComfyUI may inject twice
            self.handles = [
                layer.register_forward_hook(Contribution(part, self.strength)) for layer, part in self.sites
            ]

    def eject(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class Contribution:
    """A forward hook that adds a part's change, times a strength, to its Linear's output."""

    def __init__(self, part: Part, strength: float):
        self.part, self.strength = part, strength
        self.placed, self.where = part, None

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """``inputs`` hold x (..., in), ``y`` (..., out) is the Linear's own output."""
        x = inputs[0]
        self._place(layer, x)
        bias = getattr(layer, "bias", None)
        plain = y if bias is None else y - bias.to(y)

        @contextmanager
        def weight() -> Iterator[Tensor]:
            with fetched(layer, x.dtype, x.device) as (fetched_weight, _):
                yield fetched_weight

        return y + beside.added(self.placed, x, plain, weight) * self.strength

    def _place(self, layer: nn.Module, x: Tensor) -> None:
        """Move the part to ``x``'s device and dtype; again after inference mode: autograd cannot save its tensors."""
        where = (x.device, x.dtype, torch.is_inference_mode_enabled())
        if self.where == where:
            return
        part = self.part
        if dora.is_dora(part):
            with fetched(layer, torch.float32, x.device) as (weight, _):
                part = beside.settled(beside.placed(part, x.device, torch.float32), weight)
        self.placed, self.where = beside.placed(part, x.device, x.dtype), where
