"""Loading a flavour's three parts as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.text_encoders.flux
import comfy.utils
import folder_paths
import torch
import transformers

from ..errors import UserError
from ..flavours import AS_IN_FILE, PRECISIONS, Flavour, Flux2Files, flavour
from . import files, identify, quantise, shards


def precisions() -> list[str]:
    """How weights can be stored here: as in the file, as plain numbers, or quantised."""
    return [*PRECISIONS, *quantise.available()]


def locate_parts(chosen: Flux2Files) -> tuple[Path, Path, Path]:
    """Transformer, text encoder and VAE, all of them before anything is loaded: a missing one is told at once."""
    row = flavour(chosen.flavour)
    return (
        files.locate(row.transformer_files(chosen.variant), chosen.transformer),
        files.locate(row.text_encoders, chosen.text_encoder),
        files.locate(row.vaes, chosen.vae),
    )


def load_model(path: Path, chosen: Flux2Files):
    """ComfyUI MODEL of the chosen flavour, precision and variant. Raises UserError if the file is another flavour's."""
    row = flavour(chosen.flavour)
    model = load_transformer(path, chosen.precision, chosen.quantize_via, chosen.keep_quantised)
    identify.require_flavour(model, row, path.name)
    said = chosen.variant if chosen.variant != "auto" else row.variant_of(path.name)
    if said:
        model.set_attachments(identify.VARIANT, said)
    return model


def load_clip(path: Path, chosen: Flux2Files):
    """ComfyUI CLIP of the chosen flavour and text encoder precision."""
    row, precision = flavour(chosen.flavour), chosen.text_encoder_precision
    return load_text_encoder(path, row, precision, chosen.quantize_via, chosen.keep_quantised)


def load_transformer(path: Path, precision: str = AS_IN_FILE, via: str = "auto", keep: bool = False):
    """ComfyUI MODEL from a FLUX.2 transformer file, with its weights stored in ``precision``.

    Quantising is computed on the device ``via`` names; with ``keep`` its result is kept as a file beside the models.
    Raises UserError for a file that is not a FLUX.2 transformer and for a precision asked of a quantised file.
    """
    _require_unquantised(path, precision)
    if precision in quantise.FORMATS and keep:
        path = quantise.kept(path, precision, via, _kept_folder("diffusion_models"))
    elif precision in quantise.FORMATS:
        return _quantised_transformer(path, precision, via)
    dtype = PRECISIONS.get(precision)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        return comfy.sd.load_diffusion_model(str(path), model_options=options)
    except RuntimeError as error:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows ({error}).") from error


def _quantised_transformer(path: Path, precision: str, via: str, **options):
    weights = dict(quantise.stored(path, precision, quantise.device_for(via)))
    model = comfy.sd.load_diffusion_model_state_dict(weights, **options)
    if model is None:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows.")
    model.cached_patcher_init = (_quantised_transformer, (path, precision, via))  # how core loads it anew
    return model


def _kept_folder(kind: str) -> Path:
    return files.model_folder(kind) / "flux2_train_quantised"


def _require_unquantised(path: Path, precision: str) -> None:
    if precision != AS_IN_FILE and _is_quantised(path):
        raise UserError(f"{path.name} is already quantised: set the precision to 'as in file', not {precision!r}.")


def _is_quantised(path: Path) -> bool:
    """True if the file holds quantised tensors: fp8, int8 or packed weights, or their scales."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a safetensors file; only safetensors are loaded here.")
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        if any(key.endswith((".comfy_quant", ".weight_scale", ".scale_weight")) for key in keys):
            return True
        return any(file.get_slice(key).get_dtype() in ("F8_E4M3", "F8_E5M2", "I8", "U8") for key in keys)


def load_text_encoder(path: Path, flavour: Flavour, precision: str = AS_IN_FILE, via: str = "auto", keep: bool = False):
    """ComfyUI CLIP of the flavour's text encoder, with its weights stored in ``precision`` as for the transformer.

    ``path`` may be any part of one that is split over several files. Raises UserError for a missing part, and for a
    file without the tokenizer that ComfyUI needs.
    """
    parts = shards.parts_of(path)
    shards.require_tokenizer(parts, flavour)
    _check_tokenizer(flavour)
    for part in parts:
        _require_unquantised(part, precision)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if len(parts) > 1:
        return _split_text_encoder(parts, flavour, embeddings, precision, via, keep)
    if precision in quantise.FORMATS and keep:
        path, precision = quantise.kept(path, precision, via, _kept_folder("text_encoders")), AS_IN_FILE
    if precision == AS_IN_FILE and flavour.text_encoder_config is None:
        return comfy.sd.load_clip([str(path)], embeddings, comfy.sd.CLIPType.FLUX2)
    clip = _text_encoder_from(_weights(path, precision, via), flavour, embeddings)
    if precision == AS_IN_FILE:
        clip.patcher.set_attachments(identify.FILE, str(path))
    return clip


def _split_text_encoder(
    parts: list[Path], flavour: Flavour, embeddings: list[str], precision: str, via: str, keep: bool
):
    if keep:
        raise UserError(f"keep_quantised needs one file, but {parts[0].name} is one of {len(parts)}; turn it off.")
    clip = _text_encoder_from(
        {k: v for p in parts for k, v in _weights(p, precision, via).items()}, flavour, embeddings
    )
    if precision == AS_IN_FILE:
        clip.patcher.set_attachments(identify.FILE, str(parts[0]))
    return clip


def _weights(path: Path, precision: str, via: str) -> dict[str, torch.Tensor]:
    if precision in quantise.FORMATS:
        return dict(quantise.stored(path, precision, quantise.device_for(via)))
    weights, dtype = comfy.utils.load_torch_file(str(path), safe_load=True), PRECISIONS[precision]
    # one by one, so that the old copies go; core takes a text encoder's dtype from its tensors
    return {name: weights.pop(name).to(dtype) if dtype else weights.pop(name) for name in list(weights)}


def _check_tokenizer(flavour: Flavour) -> None:
    limit = flavour.transformers_limit
    if limit and int(transformers.__version__.split(".")[0]) > int(limit.split(".")[0]):
        raise UserError(
            f"transformers {transformers.__version__} cannot build the tokenizer of {flavour.name} in this ComfyUI; "
            f"install transformers=={limit}."
        )


def _text_encoder_from(weights: dict[str, torch.Tensor], flavour: Flavour, embeddings: list[str]):
    """A text encoder from its tensors; one of other sizes by name, as core tells its text encoders apart by width."""
    if flavour.text_encoder_config is None:
        return comfy.sd.load_text_encoder_state_dicts([weights], embeddings, comfy.sd.CLIPType.FLUX2)

    class Target:
        params: dict = {}
        clip = comfy.text_encoders.flux.klein_te(model_type="qwen3_4b", **comfy.sd.llama_detect([weights]))
        tokenizer = comfy.text_encoders.flux.KleinTokenizer

    return comfy.sd.CLIP(
        Target,
        embedding_directory=embeddings,
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"qwen3_4b_model_config": flavour.text_encoder_config},
    )


def load_vae(path: Path, flavour: Flavour):
    """ComfyUI VAE of the flavour."""
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    if flavour.vae_module is None:
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
        vae.throw_exception_if_invalid()
        if "bn.running_mean" in weights:  # ComfyUI rounds them to the VAE's precision
            vae.flux2_train_statistics = (weights["bn.running_mean"].float(), weights["bn.running_var"].float())
    else:
        vae = _vae_around(flavour.vae_module(), weights)
    vae.patcher.set_attachments(identify.FILE, str(path))
    return vae


def _vae_around(module: torch.nn.Module, weights: dict):
    """ComfyUI's VAE with a 16x autoencoder of another make inside; core only builds the ones it knows by their keys."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    module.load_state_dict(weights)
    vae.first_stage_model = module.to(vae.vae_dtype)
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    vae.disable_offload, vae.size = False, None
    pixels = 4 * vae.upscale_ratio**2  # fp32 values of one latent cell, a few copies of which are alive at a time
    vae.memory_used_encode = lambda shape, dtype: 32 * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, dtype: 8 * pixels * shape[2] * shape[3]
    offload = comfy.model_management.vae_offload_device()
    vae.patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=vae.device, offload_device=offload)
    return vae
