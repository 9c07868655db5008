"""A flavour's text encoder as ComfyUI's CLIP, whose weights take memory only from first use until it is unloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.sd
import comfy.text_encoders.flux
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ... import safetensors_header
from ...errors import UserError
from ...flavours import Flavour
from ...formats import AS_IN_FILE
from .. import contract, identify
from ..loading import deferred, quantise, shards, stored_formats, text_length, weights
from .tokenizers import problem as tokenizer_problem

HEAD = "model.lm_head."  # predicts words, which nothing here does
SIGHT = "model.visual."  # the part of a Qwen3-VL that turns pictures into tokens, by the file's names


def load_text_encoder(
    path: Path, flavour: Flavour, precision: str = AS_IN_FILE, via: str = "auto", keep: bool = False
) -> CLIP:
    """ComfyUI CLIP of the flavour's text encoder; ``precision``, ``via`` and ``keep`` as for the transformer.

    If the encoder is split, ``path`` may be any of its files. Raises UserError for a missing file, for files
    without the tokenizer that ComfyUI needs, and for a format that this ComfyUI does not have.
    """
    contract.require(contract.TEXT)
    parts = shards.parts_of(path)
    shards.require_tokenizer(parts, flavour)
    _check_tokenizer(flavour)
    for part in parts:
        weights.require_unquantised(part, precision)
    stored_formats.require_known(parts)
    source = weights.WeightSource(tuple(parts), precision, via, weights.kept_folder("text_encoders") if keep else None)
    with safetensors_header.naming(parts[0], f"the text encoder of {flavour.name}, or is damaged"):
        if comfy.memory_management.aimdo_enabled and precision not in quantise.FORMATS:
            clip = _by_core(source, flavour)  # core assigns the mapped tensors without copying them
        else:
            clip = _deferred(source, flavour)
    clip.patcher.cached_patcher_init = (_reload, (flavour, parts[0], precision, via, keep))
    if precision == AS_IN_FILE:
        clip.patcher.set_attachments(identify.FILE, str(parts[0]))
    return clip


def _reload(
    flavour: Flavour, path: Path, precision: str, via: str, keep: bool, disable_dynamic: bool = False
) -> ModelPatcher:
    """The patcher of another CLIP of the same files, for core. ``disable_dynamic`` is core's; a clone handles it."""
    return load_text_encoder(path, flavour, precision, via, keep).patcher


def _by_core(source: weights.WeightSource, flavour: Flavour) -> CLIP:
    return _built(_named(*source.read(), source.precision), flavour)


def _deferred(source: weights.WeightSource, flavour: Flavour) -> CLIP:
    tensors = _named(*source.outline(), source.precision)
    names = set(tensors)
    try:
        clip = _built(tensors, flavour, {"initial_device": deferred.META})
    except NotImplementedError:  # core moves a dtype that the device lacks (fp8 on Apple) to the CPU at once
        return _by_core(source, flavour)
    computed = source.precision in quantise.FORMATS and source.kept is None
    inner = _transformer(clip.cond_stage_model)
    names = set(_for(inner, dict.fromkeys(names)))
    head = {name for name, _ in inner.named_parameters() if name.startswith(HEAD)}  # may be missing
    weights.require_whole(inner, names | head, source.parts[0].name)
    deferred.defer(clip.patcher, partial(_assign, source), computed, _reads_nothing(source, inner))
    return clip


def _transformer(model: nn.Module) -> nn.Module:
    return getattr(model, model.clip).transformer


def _assign(source: weights.WeightSource, model: nn.Module) -> None:
    inner = _transformer(model)
    weights.assign(inner, _for(inner, _named(*source.read(), source.precision)))


def _reads_nothing(source: weights.WeightSource, inner: nn.Module) -> bool:
    """Whether getting the weights only maps the file."""
    return not source.copies() and weights.as_stored(inner, _for(inner, _named(*source.outline(), AS_IN_FILE)))


def _named(tensors: dict[str, Tensor], metadata: dict[str, str], precision: str) -> dict[str, Tensor]:
    """Tensors with the names and the dtype that core's loader expects; it takes the encoder's dtype from them.

    Core knows a Qwen3-VL by the names of the part that sees pictures, so that part keeps its names here.
    """
    tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix="", metadata=metadata)
    tensors = comfy.utils.state_dict_prefix_replace(tensors, {"lm_head.": HEAD, "model.language_model.": "model."})
    return weights.narrowed(tensors, precision)


def _for(inner: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors by the names of the built text encoder: of a Qwen3-VL, some versions of core build the part that sees.

    The others use the language model alone; then what the file has beside it is left where it is.
    """
    return comfy.utils.state_dict_prefix_replace(tensors, {SIGHT: "visual."}) if hasattr(inner, "visual") else tensors


def _check_tokenizer(flavour: Flavour) -> None:
    problem = tokenizer_problem(flavour)
    if problem:
        raise UserError(problem)


def _built(tensors: dict[str, Tensor], flavour: Flavour, options: dict[str, torch.device] | None = None) -> CLIP:
    """A CLIP from its tensors. Core knows text encoders by width; a flavour of another width brings its own config."""
    embeddings, options = folder_paths.get_folder_paths("embeddings"), options or {}
    if flavour.text_encoder_config is None:
        kind = comfy.sd.CLIPType.FLUX2
        return comfy.sd.load_text_encoder_state_dicts([tensors], embeddings, kind, model_options=options)

    class Target:
        params: dict = {}
        clip = comfy.text_encoders.flux.klein_te(model_type="qwen3_4b", **comfy.sd.llama_detect([tensors]))
        tokenizer = comfy.text_encoders.flux.KleinTokenizer

    clip = comfy.sd.CLIP(
        Target,
        embedding_directory=embeddings,
        parameters=comfy.utils.calculate_parameters(tensors),
        state_dict=[tensors],
        model_options={"qwen3_4b_model_config": flavour.text_encoder_config, **options},
    )
    text_length.pad_clip(clip, flavour)
    return clip
