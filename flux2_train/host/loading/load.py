"""Loading a flavour's three parts as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from pathlib import Path

import comfy.memory_management
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ... import safetensors_header
from ...adapters import diffusers
from ...errors import UserError
from ...flavours import flavour
from ...formats import AS_IN_FILE, DTYPES
from ...settings.model import ModelSettings
from .. import contract, identify
from ..encoding.text_encoder import load_text_encoder
from ..encoding.vae import load_vae as load_vae
from . import deferred, files, quantise, shards, stored_formats, text_length, weights

CPU = torch.device("cpu")
PARTS = ("transformer", "text_encoder", "vae")
Located = tuple[Path, Path | None, Path | None]


def precisions() -> list[str]:
    """The precisions available here: as in the file, plain dtypes, and quantised formats."""
    return [AS_IN_FILE, *DTYPES, *quantise.available()]


def locate_parts(chosen: ModelSettings, needed: Container[str] = PARTS) -> Located:
    """Paths of transformer, text encoder and VAE, all located before any is loaded: a missing one is reported early.

    ``None`` for a part that is not ``needed``; the transformer always is.
    """
    row = flavour(chosen.flavour)
    known = (row.transformer_files(chosen.variant), row.text_encoders, row.vaes)
    transformer, *others = (
        files.locate(each, getattr(chosen, name)) if name in needed else None
        for name, each in zip(PARTS, known, strict=True)
    )
    return transformer, *others


def load_model(path: Path, chosen: ModelSettings) -> ModelPatcher:
    """ComfyUI MODEL with the chosen settings. Raises UserError if the file holds another flavour."""
    row = flavour(chosen.flavour)
    model = load_transformer(path, chosen.precision, chosen.quantize_via, chosen.keep_quantised)
    identify.require_flavour(model, row, path.name)
    variant = chosen.variant if chosen.variant != "auto" else row.variant_of(path.name)
    if variant:
        model.set_attachments(identify.VARIANT, variant)
    return model


def load_clip(path: Path, chosen: ModelSettings) -> CLIP:
    """ComfyUI CLIP of the chosen flavour and text encoder precision."""
    row, precision = flavour(chosen.flavour), chosen.text_encoder_precision
    return load_text_encoder(path, row, precision, chosen.quantize_via, chosen.keep_quantised)


def load_transformer(path: Path, precision: str = AS_IN_FILE, via: str = "auto", keep: bool = False) -> ModelPatcher:
    """ComfyUI MODEL from a FLUX.2 transformer file, which stores its weights in ``precision``.

    The weights are mapped, or computed when they are first read (``deferred``). Quantising is computed on the device
    that ``via`` names; with ``keep`` the quantised copy is kept as a file beside the models.
    The file has ComfyUI's names or diffusers'; if the model is split, ``path`` may be any of its files.
    Raises UserError if the file is no FLUX.2 transformer, if it is quantised and another precision is asked for, or if
    this ComfyUI does not have its format.
    """
    contract.require(contract.LOADING)
    parts = shards.parts_of(path)
    for part in parts:
        weights.require_unquantised(part, precision)
    stored_formats.require_known(parts)
    kept = weights.kept_folder("diffusion_models") if keep else None
    source = weights.WeightSource(tuple(parts), precision, via, kept)
    if comfy.memory_management.aimdo_enabled and precision not in quantise.FORMATS:
        return _mapped_by_core(source, (str(parts[0]), precision, via, keep))
    with safetensors_header.naming(parts[0], "a FLUX.2 transformer that ComfyUI knows, or is damaged"):
        model = _without_weights(parts[0], source)
    computed = precision in quantise.FORMATS and not keep
    text_length.keeps_length(model)
    deferred.defer(model, partial(_assign_transformer, source), computed, _reads_nothing(source, model.model))
    model.cached_patcher_init = (_reload, (str(parts[0]), precision, via, keep))  # core calls it to load another
    return model


def _reload(path: str, precision: str, via: str, keep: bool, disable_dynamic: bool = False) -> ModelPatcher:
    """Another MODEL of the same file, for core. ``disable_dynamic`` is core's; a patcher's clone handles it."""
    return load_transformer(Path(path), precision, via, keep)


def _mapped_by_core(source: weights.WeightSource, arguments: tuple) -> ModelPatcher:
    """The MODEL with dynamic VRAM, where core maps files itself and reads each layer when it is needed.

    Core is given tensors instead of a file it cannot read: one of several parts, or one with diffusers' names.
    """
    path, dtype = source.parts[0], weights.dtype_of(source.precision)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        if len(source.parts) == 1 and not diffusers.is_diffusers(safetensors_header.read(path).tensors):
            model = comfy.sd.load_diffusion_model(str(path), model_options=options)
            if text_length.keeps_length(model):
                model.cached_patcher_init = (_reload, arguments)
            return model
        tensors, metadata = source.read()
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata)
    except RuntimeError as error:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows ({error}).") from error
    if model is None:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows.")
    text_length.keeps_length(model)
    model.cached_patcher_init = (_reload, arguments)
    return model


def _without_weights(path: Path, source: weights.WeightSource) -> ModelPatcher:
    """ComfyUI's MODEL with weights on the meta device."""
    dtype = weights.dtype_of(source.precision)
    model = _built(path, source, dtype)
    in_file = comfy.utils.weight_dtype(source.outline()[0])
    # If the CPU cannot compute in 16 bits, core would store weights as fp32, twice the file's size. Casting them on use
    # does as well.
    if dtype is None and model.load_device.type == "cpu" and model.model.get_dtype().itemsize > in_file.itemsize:
        return model if model.model.model_config.quant_config else _as_stored(_built(path, source, in_file), source)
    return model


def _as_stored(model: ModelPatcher, source: weights.WeightSource) -> ModelPatcher:
    """The MODEL with every weight in its own dtype from the file, which may mix them: fp8 beside bf16."""
    module, config = model.model.diffusion_model, model.model.model_config
    stored = config.process_unet_state_dict(_unprefixed(*source.outline()))
    for name, weight in list(module.named_parameters()):
        if stored[name].dtype != weight.dtype:
            layer, _, own_name = name.rpartition(".")
            as_in_file = torch.empty_like(weight, dtype=stored[name].dtype)
            module.get_submodule(layer)._parameters[own_name] = torch.nn.Parameter(as_in_file, requires_grad=False)
    return model


def _built(path: Path, source: weights.WeightSource, dtype: torch.dtype | None) -> ModelPatcher:
    offload = comfy.model_management.unet_offload_device()
    options = {"offload_device": CPU, **({} if dtype is None else {"dtype": dtype})}
    tensors = _unprefixed(*source.outline())
    stored = dict(tensors)  # core removes them from `tensors`
    with deferred.META:
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options)
    if model is None:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows.")
    core = model.model
    # built again: the table in it was on the meta device too
    core.model_sampling = comfy.model_base.model_sampling(core.model_config, core.model_type)
    model.offload_device = core.device = offload
    # Core renames weights: files of Black Forest Labs call the norms of q and k "scale".
    weights.require_whole(core.diffusion_model, set(core.model_config.process_unet_state_dict(stored)), path.name)
    return model


def _assign_transformer(source: weights.WeightSource, model: torch.nn.Module) -> None:
    tensors = model.model_config.process_unet_state_dict(_unprefixed(*source.read()))
    weights.assign(model.diffusion_model, tensors)


def _reads_nothing(source: weights.WeightSource, model: torch.nn.Module) -> bool:
    """Whether getting the weights only maps the file."""
    if source.copies():
        return False
    tensors = model.model_config.process_unet_state_dict(_unprefixed(*source.outline()))
    return weights.as_stored(model.diffusion_model, tensors)


def _unprefixed(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    """A transformer's tensors by core's names; the file may be a full checkpoint, or older than ``comfy_quant``."""
    tensors, metadata = comfy.utils.convert_old_quants(tensors, "", metadata)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    inside = comfy.utils.state_dict_prefix_replace(tensors, {prefix: ""}, filter_keys=True)
    if not inside:
        return tensors
    converted, _ = comfy.utils.convert_old_quants(inside, "", metadata)
    # If the header names layers with the prefix, some names still have it: core would mistake them for the model.
    return {name: tensor for name, tensor in converted.items() if not name.startswith(prefix)}
