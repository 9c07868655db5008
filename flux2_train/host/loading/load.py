"""Loading a flavour's three parts as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import comfy.memory_management
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ... import safetensors_header as headers
from ...adapters import diffusers
from ...errors import UserError
from ...flavours import flavour
from ...formats import AS_IN_FILE, DTYPES
from ...settings.model import ModelSettings
from .. import identify
from ..encoding.text_encoder import load_text_encoder
from ..encoding.vae import load_vae as load_vae
from . import deferred, files, quantise, shards, weights

CPU = torch.device("cpu")


def precisions() -> list[str]:
    """How weights can be stored here: as in the file, as plain numbers, or quantised."""
    return [AS_IN_FILE, *DTYPES, *quantise.available()]


def locate_parts(chosen: ModelSettings) -> tuple[Path, Path, Path]:
    """Transformer, text encoder and VAE, all of them before anything is loaded: a missing one is told at once."""
    row = flavour(chosen.flavour)
    return (
        files.locate(row.transformer_files(chosen.variant), chosen.transformer),
        files.locate(row.text_encoders, chosen.text_encoder),
        files.locate(row.vaes, chosen.vae),
    )


def load_model(path: Path, chosen: ModelSettings):
    """ComfyUI MODEL of the chosen flavour, precision and variant. Raises UserError if the file is another flavour's."""
    row = flavour(chosen.flavour)
    model = load_transformer(path, chosen.precision, chosen.quantize_via, chosen.keep_quantised)
    identify.require_flavour(model, row, path.name)
    said = chosen.variant if chosen.variant != "auto" else row.variant_of(path.name)
    if said:
        model.set_attachments(identify.VARIANT, said)
    return model


def load_clip(path: Path, chosen: ModelSettings):
    """ComfyUI CLIP of the chosen flavour and text encoder precision."""
    row, precision = flavour(chosen.flavour), chosen.text_encoder_precision
    return load_text_encoder(path, row, precision, chosen.quantize_via, chosen.keep_quantised)


def load_transformer(path: Path, precision: str = AS_IN_FILE, via: str = "auto", keep: bool = False):
    """ComfyUI MODEL from a FLUX.2 transformer file, which will store its weights in ``precision``.

    They are mapped, or made when they are first read (``deferred``). Quantising is computed on the device that ``via``
    names; with ``keep`` its result is kept as a file beside the models.
    The file has ComfyUI's names or diffusers'; ``path`` may be any part of one that is split over several.
    Raises UserError for a file that is not a FLUX.2 transformer and for a precision asked of a quantised file.
    """
    parts = shards.parts_of(path)
    for part in parts:
        weights.require_unquantised(part, precision)
    kept = weights.kept_folder("diffusion_models") if keep else None
    source = weights.WeightSource(tuple(parts), precision, via, kept)
    if comfy.memory_management.aimdo_enabled and precision not in quantise.FORMATS:
        return _mapped_by_core(source, (str(parts[0]), precision, via, keep))
    model = _without_weights(parts[0], source)
    made = precision in quantise.FORMATS and not keep
    deferred.defer(model, partial(_give_transformer, source), made, _reads_nothing(source, model.model))
    model.cached_patcher_init = (_again, (str(parts[0]), precision, via, keep))  # how core loads it anew
    return model


def _again(path: str, precision: str, via: str, keep: bool, disable_dynamic: bool = False):
    """Another MODEL of the same file; a patcher's clone decides by itself whether dynamic VRAM is used."""
    return load_transformer(Path(path), precision, via, keep)


def _mapped_by_core(source: weights.WeightSource, how: tuple):
    """With dynamic VRAM core maps files itself, and reads a layer when it is needed.

    Files that it cannot read, of several parts or under diffusers' names, it gets as tensors.
    """
    path, dtype = source.parts[0], weights.dtype_of(source.precision)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        if len(source.parts) == 1 and not diffusers.is_diffusers(headers.read(path).tensors):
            return comfy.sd.load_diffusion_model(str(path), model_options=options)
        tensors, metadata = source.read()
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata)
    except RuntimeError as error:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows ({error}).") from error
    if model is None:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows.")
    model.cached_patcher_init = (_again, how)
    return model


def _without_weights(path: Path, source: weights.WeightSource):
    """ComfyUI's MODEL whose weights have no bytes yet."""
    dtype = weights.dtype_of(source.precision)
    model = _built(path, source, dtype)
    own = comfy.utils.weight_dtype(source.outline()[0])
    # where nothing computes in 16 bits core would store twice the file; weights can as well be widened when used
    if dtype is None and model.load_device.type == "cpu" and model.model.get_dtype().itemsize > own.itemsize:
        return model if model.model.model_config.quant_config else _as_stored(_built(path, source, own), source)
    return model


def _as_stored(model, source: weights.WeightSource):
    """The MODEL with every weight in the type that it has in its file, where these differ: fp8 beside bf16."""
    module, config = model.model.diffusion_model, model.model.model_config
    stored = config.process_unet_state_dict(_unprefixed(*source.outline()))
    for name, weight in list(module.named_parameters()):
        if stored[name].dtype != weight.dtype:
            place, _, own = name.rpartition(".")
            meant = torch.empty_like(weight, dtype=stored[name].dtype)
            module.get_submodule(place)._parameters[own] = torch.nn.Parameter(meant, requires_grad=False)
    return model


def _built(path: Path, source: weights.WeightSource, dtype: torch.dtype | None):
    offload = comfy.model_management.unet_offload_device()
    options = {"offload_device": CPU, **({} if dtype is None else {"dtype": dtype})}
    tensors = _unprefixed(*source.outline())
    stored = dict(tensors)  # core takes them out of the other
    with deferred.META:
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options)
    if model is None:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows.")
    core = model.model
    core.model_sampling = comfy.model_base.model_sampling(core.model_config, core.model_type)  # has a table of its own
    model.offload_device = core.device = offload
    # core's names: files of Black Forest Labs call the norms of q and k "scale"
    weights.require_whole(core.diffusion_model, set(core.model_config.process_unet_state_dict(stored)), path.name)
    return model


def _give_transformer(source: weights.WeightSource, model: torch.nn.Module) -> None:
    tensors = model.model_config.process_unet_state_dict(_unprefixed(*source.read()))
    weights.assign(model.diffusion_model, tensors)


def _reads_nothing(source: weights.WeightSource, model: torch.nn.Module) -> bool:
    """Whether the weights are mapped as they lie in the file."""
    if source.copies():
        return False
    tensors = model.model_config.process_unet_state_dict(_unprefixed(*source.outline()))
    return weights.as_stored(model.diffusion_model, tensors)


def _unprefixed(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    """A transformer's tensors by core's names, from a file that may be a checkpoint or older than ``comfy_quant``."""
    tensors, metadata = comfy.utils.convert_old_quants(tensors, "", metadata)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    inside = comfy.utils.state_dict_prefix_replace(tensors, {prefix: ""}, filter_keys=True)
    if not inside:
        return tensors
    found, _ = comfy.utils.convert_old_quants(inside, "", metadata)
    # a header that names the layers with the prefix has left such names: core would take them for the model
    return {name: tensor for name, tensor in found.items() if not name.startswith(prefix)}
