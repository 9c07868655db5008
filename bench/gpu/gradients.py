"""Gradients of LoRA matrices on the card, against those in fp32 on the processor, of the same stored weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from torch import Tensor

from bench.gpu import models
from bench.shapes import flux2_shapes
from flux2_train.adapters import targets
from flux2_train.adapters.live import Adapters, Site
from flux2_train.errors import UserError
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.borrowed.compute import NAMES, training_dtype
from flux2_train.host.borrowed.velocity import Condition, velocity
from flux2_train.host.loading import quantise
from flux2_train.planning.layout import BLOCKS, Layout
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.train.loss_scale import FIRST, LossScale

SIZES = 256, 1, 2, 96  # hidden, double and single blocks, context
SIDE, SIDE_CPU, TEXT = 48, 12, 16  # tokens: of an image of 768 px, of one for a dry run, and of its caption
BOUNDS = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 6e-2}  # of the worst parameter, by norm
CPU = torch.device("cpu")


def gradient(precision: str, dtype: str = "", streamed: bool = False) -> dict:
    """The worst relative error over all parameters, and how many gradients are exactly zero.

    ``dtype`` 'fp16' computes as cards do that have no bf16, with the loss scaled. Raises UserError where the format is
    not there.
    """
    if precision in quantise.FORMATS and precision not in quantise.available():
        raise UserError(f"This ComfyUI or torch has no {precision}.")
    generator = torch.Generator().manual_seed(0)
    number = torch.float32 if precision == "fp32" else torch.bfloat16
    weights = {name: _weight(shape, generator).to(number) for name, shape in flux2_shapes(*SIZES)}
    tensors = models.stored(weights, precision)
    exact, where = _exact(tensors, precision)
    model = models.loaded(_copied(tensors), precision)
    layout = Layout(BLOCKS, streamed=(0, 1, 2) if streamed else ())
    with _without_bf16(dtype == "fp16"):
        if dtype == "fp16":
            _computing_in(model, torch.float16)
        computed = NAMES[training_dtype(model)]
        found = gradients(model, layout, FIRST if computed == "fp16" else 1.0)
    words = f"{precision} weights, computed in {computed}{', streamed' if streamed else ''}{where}"
    return {**compared(found, exact, BOUNDS[computed]), "words": words}


def compared(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> dict:
    """Whether the worst parameter is within ``bound``, by the norm of its error; what is no number is not."""
    error = max(((found[n] - g).norm() / g.norm()).nan_to_num(torch.inf).item() for n, g in exact.items())
    zeros = sum((g == 0).sum().item() for g in found.values()) / sum(g.numel() for g in found.values())
    return {"right": error <= bound, "error": min(error, 1e9), "bound": bound, "zeros": zeros}


def _exact(tensors: dict[str, Tensor], precision: str) -> tuple[dict[str, Tensor], str]:
    """Gradients in fp32 on the processor; where ComfyUI cannot, on the card, and words that say so."""
    try:
        model = models.loaded(_copied(tensors), precision, CPU)
        return gradients(_computing_in(model, torch.float32), Layout(BLOCKS)), ""
    except Exception as error:
        model = models.loaded(_copied(tensors), precision)
        where = f", against fp32 on the card ({type(error).__name__})"
        return gradients(_computing_in(model, torch.float32), Layout(BLOCKS)), where


def _weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _computing_in(model, dtype: torch.dtype):
    """The MODEL as ComfyUI sets it up where it computes in ``dtype``."""
    model.model.manual_cast_dtype = None if model.model.get_dtype() == dtype else dtype
    return model


@contextmanager
def _without_bf16(really: bool) -> Iterator[None]:
    """ComfyUI believes that no device has bf16, as it does on an RTX 20xx."""
    known = comfy.model_management.should_use_bf16
    if really:
        comfy.model_management.should_use_bf16 = lambda *args, **kwargs: False
    try:
        yield
    finally:
        comfy.model_management.should_use_bf16 = known


def gradients(model, layout: Layout, scale: float = 1.0) -> dict[str, Tensor]:
    """Gradients in fp32 on the CPU by parameter, of a mean squared error over a fixed image."""
    device, layers = model.load_device, linears(model)
    side = SIDE_CPU if comfy.model_management.get_torch_device().type == "cpu" else SIDE
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(1, 128, side, side, generator=generator) for _ in range(2))
    text = torch.randn(1, TEXT, SIZES[3], generator=generator)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, 4, 4.0) for n in targets.select(layers)}
    with training_mode():
        adapters = Adapters(sites, AdapterSettings(), 0, device)
        with torch.no_grad():
            for parameter in adapters.trainable():  # what begins at zero would take the other matrix's gradient away
                parameter.copy_(torch.empty(parameter.shape).normal_(std=0.05, generator=generator))
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), Borrowed(layout)) as borrowed, training_mode():
        t = torch.tensor([0.5]).to(device)
        v = velocity(borrowed, x.clone().to(device), t, [Condition(text.clone().to(device))])
        (scale * (v - target.clone().to(device)).square().mean()).backward()
    scaling = LossScale(scale != 1)
    scaling.scale = scale
    scaling.down(adapters.trainable())
    return {name: p.grad.float().cpu() for name, p in adapters.masters().items()}
