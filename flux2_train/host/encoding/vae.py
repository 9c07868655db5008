"""A flavour's autoencoder as ComfyUI's VAE, whose weights take memory only from first use on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ... import safetensors_header
from ...flavours import Flavour
from .. import contract, identify
from ..loading import deferred, reading, weights


class DeferredVAE(comfy.sd.VAE):
    """A VAE that fetches its weights also for nodes that save them without loading it."""

    def get_sd(self) -> dict[str, Tensor]:
        """See ``comfy.sd.VAE``."""
        deferred.fill(self.first_stage_model)
        return super().get_sd()


def load_vae(path: Path, flavour: Flavour) -> comfy.sd.VAE:
    """ComfyUI VAE of the flavour. Raises UserError naming a file that holds none."""
    contract.require(contract.PICTURES)
    with safetensors_header.naming(path, f"the VAE of {flavour.name}, or is damaged"):
        if flavour.vae_module is None:
            vae = _deferred(path)
        else:
            vae = _wrapping(flavour.vae_module(comfy.ops.disable_weight_init), reading.mapped([path])[0])
    vae.patcher.set_attachments(identify.FILE, str(path))
    return vae


def _deferred(path: Path) -> comfy.sd.VAE:
    tensors, metadata = deferred.outline(path)
    statistics = {name: tensor for name, tensor in reading.mapped([path])[0].items() if name.startswith("bn.")}
    with deferred.META:
        vae = comfy.sd.VAE(sd=dict(tensors), metadata=metadata)
    vae.throw_exception_if_invalid()
    module = vae.first_stage_model
    if comfy.memory_management.aimdo_enabled or not tensors.keys() >= dict(module.named_parameters()).keys():
        tensors, metadata = reading.mapped([path])  # core maps the file itself, or renames its tensors
        vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    else:
        for name, value in dict(module.named_buffers()).items():
            layer, _, own_name = name.rpartition(".")
            module.get_submodule(layer)._buffers[own_name] = statistics[name].to(value.dtype, copy=True)
        only_maps = weights.as_stored(module, tensors)
        deferred.defer(vae.patcher, partial(_assign, path), computed=False, reads_nothing=only_maps)
        vae.__class__ = DeferredVAE
    if "bn.running_mean" in statistics:  # kept, because ComfyUI rounds them to the VAE's precision
        mean, var = (statistics[f"bn.running_{name}"].float() for name in ("mean", "var"))
        vae.flux2_train_statistics = (mean.clone(), var.clone())
    return vae


def _assign(path: Path, module: nn.Module) -> None:
    tensors, buffers = reading.mapped([path])[0], dict(module.named_buffers())
    weights.assign(module, {name: tensor for name, tensor in tensors.items() if name not in buffers})


def _wrapping(module: nn.Module, tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """ComfyUI's VAE around an autoencoder (16 times smaller, 128 channels) that core itself cannot build."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    module.load_state_dict(tensors)
    vae.first_stage_model = module.to(vae.vae_dtype)
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    vae.disable_offload, vae.size = False, None
    pixels = 4 * vae.upscale_ratio**2  # bytes of one fp32 channel of the pixels under one latent cell
    vae.memory_used_encode = lambda shape, dtype: 32 * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, dtype: 8 * pixels * shape[2] * shape[3]
    offload = comfy.model_management.vae_offload_device()
    vae.patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=vae.device, offload_device=offload)
    return vae
