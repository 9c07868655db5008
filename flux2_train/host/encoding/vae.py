"""A flavour's autoencoder as ComfyUI's VAE, whose weights take memory from first use on."""

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

from ...flavours import Flavour
from .. import identify
from ..loading import deferred, reading, weights


class DeferredVAE(comfy.sd.VAE):
    """Also has its weights for nodes that save them without loading it."""

    def get_sd(self) -> dict[str, Tensor]:
        """See ``comfy.sd.VAE``."""
        deferred.fill(self.first_stage_model)
        return super().get_sd()


def load_vae(path: Path, flavour: Flavour):
    """ComfyUI VAE of the flavour."""
    if flavour.vae_module is None:
        vae = _deferred(path)
    else:
        vae = _around(flavour.vae_module(comfy.ops.disable_weight_init), reading.mapped([path])[0])
    vae.patcher.set_attachments(identify.FILE, str(path))
    return vae


def _deferred(path: Path):
    tensors, metadata = deferred.outline(path)
    statistics = {name: tensor for name, tensor in reading.mapped([path])[0].items() if name.startswith("bn.")}
    with deferred.META:
        vae = comfy.sd.VAE(sd=dict(tensors), metadata=metadata)
    vae.throw_exception_if_invalid()
    module = vae.first_stage_model
    if comfy.memory_management.aimdo_enabled or not tensors.keys() >= dict(module.named_parameters()).keys():
        tensors, metadata = reading.mapped([path])  # core maps them itself, or gives them other names
        vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    else:
        for name, value in dict(module.named_buffers()).items():
            place, _, own = name.rpartition(".")
            module.get_submodule(place)._buffers[own] = statistics[name].to(value.dtype, copy=True)
        only_maps = weights.as_stored(module, tensors)
        deferred.defer(vae.patcher, partial(_give, path), computed=False, reads_nothing=only_maps)
        vae.__class__ = DeferredVAE
    if "bn.running_mean" in statistics:  # ComfyUI rounds them to the VAE's precision
        mean, var = (statistics[f"bn.running_{name}"].float() for name in ("mean", "var"))
        vae.flux2_train_statistics = (mean.clone(), var.clone())
    return vae


def _give(path: Path, module: nn.Module) -> None:
    tensors, buffers = reading.mapped([path])[0], dict(module.named_buffers())
    weights.assign(module, {name: tensor for name, tensor in tensors.items() if name not in buffers})


def _around(module: nn.Module, tensors: dict[str, Tensor]):
    """ComfyUI's VAE with a 16x autoencoder of another make inside; core only builds the ones it knows by their keys."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    module.load_state_dict(tensors)
    vae.first_stage_model = module.to(vae.vae_dtype)
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    vae.disable_offload, vae.size = False, None
    pixels = 4 * vae.upscale_ratio**2  # fp32 values of one latent cell, a few copies of which are alive at a time
    vae.memory_used_encode = lambda shape, dtype: 32 * shape[2] * shape[3]
    vae.memory_used_decode = lambda shape, dtype: 8 * pixels * shape[2] * shape[3]
    offload = comfy.model_management.vae_offload_device()
    vae.patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=vae.device, offload_device=offload)
    return vae
