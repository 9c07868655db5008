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
from ..flavours import PRECISIONS, Flavour, Flux2Files, flavour
from . import files, identify


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
    model = load_transformer(path, chosen.precision)
    identify.require_flavour(model, row, path.name)
    said = chosen.variant if chosen.variant != "auto" else row.variant_of(path.name)
    if said:
        model.set_attachments(identify.VARIANT, said)
    return model


def load_transformer(path: Path, precision: str = "as in file"):
    """ComfyUI MODEL from a FLUX.2 transformer file, with its weights stored in ``precision``.

    Raises UserError for a file that is not a FLUX.2 transformer and for a precision asked of a quantised file.
    """
    dtype = PRECISIONS[precision]
    if dtype is not None and _is_quantised(path):
        raise UserError(f"{path.name} is already quantised: set precision to 'as in file', not {precision!r}.")
    options = {} if dtype is None else {"dtype": dtype}
    try:
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
    except RuntimeError as error:
        raise UserError(f"{path.name} is not a diffusion model that ComfyUI knows ({error}).") from error
    return model


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


def load_text_encoder(path: Path, flavour: Flavour):
    """ComfyUI CLIP of the flavour's text encoder."""
    _check_tokenizer(flavour)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if flavour.text_encoder_config is None:
        return comfy.sd.load_clip([str(path)], embeddings, comfy.sd.CLIPType.FLUX2)
    clip = _text_encoder_of_size(path, flavour.text_encoder_config, embeddings)
    clip.patcher.set_attachments(identify.FILE, str(path))
    return clip


def _check_tokenizer(flavour: Flavour) -> None:
    limit = flavour.transformers_limit
    if limit and int(transformers.__version__.split(".")[0]) > int(limit.split(".")[0]):
        raise UserError(
            f"transformers {transformers.__version__} cannot build the tokenizer of {flavour.name} in this ComfyUI; "
            f"install transformers=={limit}."
        )


def _text_encoder_of_size(path: Path, config: dict, embeddings: list[str]):
    """A klein text encoder of other sizes: core tells its text encoders apart by width, so it is built by name."""

    class Target:
        params: dict = {}
        clip = comfy.text_encoders.flux.klein_te(model_type="qwen3_4b")
        tokenizer = comfy.text_encoders.flux.KleinTokenizer

    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.CLIP(
        Target,
        embedding_directory=embeddings,
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"qwen3_4b_model_config": config},
    )


def load_vae(path: Path, flavour: Flavour):
    """ComfyUI VAE of the flavour."""
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    if flavour.vae_module is None:
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
        vae.throw_exception_if_invalid()
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
