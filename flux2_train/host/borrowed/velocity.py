"""Asking ComfyUI's model for a velocity, with the text prepared exactly as ComfyUI's sampler does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.model_management
import comfy.patcher_extension
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import UserError
from ...streaming.uploads import uploaded
from . import rotation
from .attention import OPTION, Kernels
from .compute import in_training_dtype
from .last_block import IMAGE_TOKENS, attention_of_read
from .pipeline import enter
from .recompute import attended
from .routing import KEY, Route, TokenRouting

DIFFUSION_MODEL = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL


@dataclass(frozen=True)
class Condition:
    """What one sample is conditioned on.

    ``embeds`` are the text encoder's output (1, L, D); ``references`` are latents (1, 128, h, w); ``guidance`` is dev's
    embedded guidance, which models without it ignore. ``method`` is ComfyUI's name for how references are placed:
    ``index`` at the image's own time, ``index_timestep_zero`` as clean images.
    """

    embeds: Tensor
    references: tuple[Tensor, ...] = field(default=())
    guidance: float = 1.0
    method: str = "index"


def check_embeds(model: ModelPatcher, embeds: Tensor) -> None:
    """Raise UserError if the text embeddings come from another flavour's text encoder."""
    expected = model.model.diffusion_model.params.context_in_dim
    if embeds.shape[-1] != expected:
        raise UserError(
            f"The embeds are {embeds.shape[-1]} wide but this MODEL reads {expected}: they were made with another "
            "flavour's text encoder. Wire the CLIP of the same Load FLUX.2 into Cache Embeds."
        )


def model_inputs(model: ModelPatcher, x: Tensor, condition: Condition) -> dict:
    """The keyword arguments of ``apply_model`` for a batch ``x``, as ComfyUI's sampler prepares them.

    ``extra_conds`` pads dev's embeds on the left with zeros to 512 tokens. A trainer that calls the transformer
    directly does not get that padding.
    """
    conds = model.model.extra_conds(
        cross_attn=uploaded(condition.embeds, x.device),
        pooled_output=None,  # FLUX.2 has none, but ComfyUI up to 0.18.2 requires the key
        noise=x,
        device=x.device,
        guidance=condition.guidance,
        reference_latents=[uploaded(r, x.device).to(x) for r in condition.references] or None,
        reference_latents_method=condition.method,
    )
    return {name: c.process_cond(batch_size=x.shape[0], area=None, device=x.device).cond for name, c in conds.items()}


def velocity(
    model: ModelPatcher, x_t: Tensor, t: Tensor, conditions: list[Condition], routes: Sequence[Route] = ()
) -> Tensor:
    """The model's velocity for ``x_t`` (B, 128, h, w) at times ``t`` (B,) fp32 in 0..1; same shape, at least fp32.

    Samples of one batch run together if their conditions have equal shapes, else one by one. ``routes`` say which image
    tokens skip blocks; they need a model that ``borrow`` gave. In a unit of ``pipeline`` the result lies on the
    last card.
    """
    enter(x_t.device)
    each = [model_inputs(model, x_t[i : i + 1], c) for i, c in enumerate(conditions)]
    if len({_shapes(inputs) for inputs in each}) == 1:
        return _apply(model, x_t, t, _stack(each), routes)
    rows = [slice(i, i + 1) for i in range(len(each))]
    return torch.cat([
        _apply(model, x_t[row], t[row], inputs, [route.rows(row) for route in routes])
        for row, inputs in zip(rows, each, strict=True)
    ])  # fmt: skip


def _shapes(inputs: dict) -> tuple:
    def shape(value):
        if isinstance(value, str):
            return value
        return tuple(map(shape, value)) if isinstance(value, list) else tuple(value.shape)

    return tuple((name, shape(value)) for name, value in sorted(inputs.items()))


def _stack(each: list[dict]) -> dict:
    def stack(values):
        if isinstance(values[0], str):
            return values[0]
        return [torch.cat(v) for v in zip(*values, strict=True)] if isinstance(values[0], list) else torch.cat(values)

    return {name: stack([inputs[name] for inputs in each]) for name in each[0]}


def _apply(model: ModelPatcher, x_t: Tensor, t: Tensor, inputs: dict, routes: Sequence[Route]) -> Tensor:
    raw: list[Tensor] = []

    def keep_output(executor, x, *args, **kwargs):
        raw.append(executor(x, *args, **kwargs))
        # In a unit the output stays on the last card. Nothing reads what apply_model makes of what is returned here.
        return raw[-1] if raw[-1].device == x.device else x

    options, tokens = _transformer_options(model, keep_output), x_t[0, 0].numel()
    options[IMAGE_TOKENS] = tokens
    if routes:
        options[KEY] = TokenRouting(routes, tokens, x_t.device)
    with in_training_dtype(model):
        model.model.apply_model(x_t, t, transformer_options=options, **inputs)
    # The transformer's own output: apply_model returns x - t * velocity, and dividing that by a small t is inexact.
    return raw[0].to(torch.promote_types(raw[0].dtype, torch.float32))


def _transformer_options(model: ModelPatcher, wrapper: Callable) -> dict:
    options = comfy.patcher_extension.copy_nested_dicts(model.model_options.get("transformer_options", {}))
    wrappers = options.setdefault("wrappers", {})
    comfy.patcher_extension.merge_nested_dicts(wrappers, model.wrappers, copy_dict1=False)
    wrappers.setdefault(DIFFUSION_MODEL, {}).setdefault("flux2_train", []).append(wrapper)
    if rotation.available() and comfy.model_management.in_training:
        patches = options.setdefault("patches", {})
        patches["attn1_patch"] = [*patches.get("attn1_patch", ()), rotation.Rotations()]  # a MODEL's own come first
    # Training needs an attention with a gradient, whichever the user chose: ComfyUI's sage and flash have none.
    kernels = options.pop(OPTION, None) or Kernels()

    def attention(*args, **kwargs) -> Tensor:
        return attended(kernels.of(args, kwargs), *args, **kwargs)

    def override(_: Callable, *args, **kwargs) -> Tensor:
        return attention_of_read(attention, *args, **kwargs)

    options["optimized_attention_override"] = override
    return options
