"""FLUX.2 MODELs of any size with random weights, loaded as ComfyUI loads a file, and caches to train them on."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from PIL import Image
from torch import Tensor

from bench.shapes import flux2_shapes
from flux2_train.data.cache import EmbedCache, LatentCache
from flux2_train.data.folder import read_folder
from flux2_train.flavours import FLAVOURS
from flux2_train.formats import DTYPES
from flux2_train.host.loading import quantise
from flux2_train.host.loading.weights import dtype_of
from flux2_train.settings.dataset_folder import DatasetSettings

TEXT = 512  # tokens, as klein's embeds have them
TILE = 1 << 22  # random numbers, of which weights are made
_last: dict = {}  # the flavour and precision of the one model that is kept, and the model


def stored(weights: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """A state dict with its blocks' matrices as Load FLUX.2 stores them in ``precision``, and the rest as it is."""
    found = {}
    for name, weight in weights.items():
        if not quantise.MATRICES.fullmatch(name):
            found[name] = weight
        elif precision in quantise.FORMATS:
            found |= quantise.quantised(name.removesuffix(".weight"), weight, precision)
        else:
            found[name] = weight.to(dtype_of(precision))
    return found


def loaded(tensors: dict[str, Tensor], precision: str, device: torch.device | None = None):
    """ComfyUI's MODEL of a state dict, as its own loader makes it; computes on ``device`` in place of ComfyUI's."""
    options = {} if device is None else {"load_device": device, "offload_device": device}
    if precision in DTYPES:
        options["dtype"] = dtype_of(precision)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(tensors, model_options=options)


def flavour_model(flavour: str, precision: str):
    """A MODEL of a flavour's true shapes with random weights. The last one is kept for the next row."""
    if _last.get("key") != (flavour, precision):
        forget()
        _last.update(key=(flavour, precision), model=loaded(_random(flavour, precision), precision))
    return _last["model"]


def forget() -> None:
    """Let the kept model go."""
    _last.clear()
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def _random(flavour: str, precision: str) -> dict[str, Tensor]:
    """The state dict in host memory. Matrices of one shape hold the same numbers, each in memory of its own."""
    row = FLAVOURS[flavour]
    device = comfy.model_management.get_torch_device()
    tile, known, found = torch.randn(TILE).to(device), {}, {}
    for name, shape in flux2_shapes(*row.sizes, row.embedded_guidance):
        kind = (shape, bool(quantise.MATRICES.fullmatch(name)))
        if kind not in known:
            weight = {name: _filled(tile, shape)}
            tensors = stored(weight, precision)
            known[kind] = {key.removeprefix(name.removesuffix("weight")): t.cpu() for key, t in tensors.items()}
        prefix = name.removesuffix("weight")
        found |= {f"{prefix}{key}": tensor.clone() for key, tensor in known[kind].items()}
    return found


def _filled(tile: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A random bf16 matrix whose products are about as large as its inputs, or ones for a norm."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    count = shape[0] * shape[1]
    numbers = tile.repeat(-(-count // tile.numel()))[:count].view(shape)
    return (numbers * shape[1] ** -0.5).to(torch.bfloat16)


def caches(
    pixels: int, context: int, texts: tuple[str, ...] = (), images: int = 2, tokens: int = 0
) -> tuple[EmbedCache, LatentCache]:
    """Random latents of square images and random embeds of their captions and of ``texts``, TEXT ``tokens`` each."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(images):
            Image.new("RGB", (pixels, pixels), (50 * number % 256, 90, 120)).save(Path(folder) / f"{number}.png")
            (Path(folder) / f"{number}.txt").write_text(f"a picture with the number {number}")
        dataset = read_folder(DatasetSettings(Path(folder), resolution=pixels))
    dataset = replace(dataset, warnings=())
    every = dict.fromkeys([*dataset.texts(), *texts])
    embeds = {text: torch.randn(1, tokens or TEXT, context, generator=generator).to(torch.bfloat16) for text in every}
    latents = {view: torch.randn(view.latent_shape, generator=generator) for view in dataset.views()}
    return EmbedCache(dataset, embeds), LatentCache(dataset, latents)
