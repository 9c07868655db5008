"""Names that settings had in earlier versions, so that old job files, LoRA headers and checkpoints can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from . import base
from .previews import FIXED, WALKING
from .training import LOGS, TrainingSettings

Names = Mapping[str, str]
SAME: Names = {}
# Sections of ``training``: the old name, today's name, and the old and new names of fields.
TRAINING: tuple[tuple[str, str, Names], ...] = (
    ("timesteps", "timesteps", {
        "scale": "sigmoid_scale", "mean": "sigmoid_mean", "std": "sigmoid_std", "alpha": "beta_alpha",
        "beta": "beta_beta", "least": "min", "most": "max",
    }),
    ("loss", "loss", {
        "kind": "loss", "width": "huber_width", "width_schedule": "huber_schedule", "detail": "wavelet_detail",
        "least": "loss_min", "most": "loss_max",
    }),
    ("guide", "guidance", {"most": "guidance_max", "contrastive": "contrastive_guidance", "cfg": "true_cfg"}),
    ("preserve", "preservation_options", SAME),
    ("optimizer", "optimizer", {"name": "optimizer"}),
    ("ema", "ema", {
        "decay": "ema_decay", "warmup": "ema_warmup", "export": "ema_export", "preview": "ema_preview",
    }),
    ("held_out", "validation_loss", SAME),
)  # fmt: skip
DATASET: tuple[tuple[str, str, Names], ...] = (
    ("caption", "caption_options", SAME),
    ("crop", "crop_options", {"aspect": "crop_aspect", "style": "crop_style"}),
    ("mask", "mask_options", SAME),
    ("reference", "reference_options", SAME),
)
SOURCE: Names = {
    "repeats": "repeats", "probability": "probability", "weight": "loss_weight", "is_reg": "is_reg",
    "base_target": "base_target", "timestep_offset": "timestep_offset",
}  # fmt: skip
# Earlier versions also wrote these into ``dataset.source``, where they had no effect: the default of each.
UNUSED: Mapping[str, Any] = {
    "folder": ".", "trigger": "", "class_word": "", "caption_dropout": 0.0, "dropout_caption": "",
    "dropout_class_caption": "", "reference_dropout": 0.0, "reference_sampling": "combined",
}  # fmt: skip


def renamed(job: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a job under today's names. A section of a wrong type is left for the check of types."""
    values = dict(job)
    _move(values, "validation", "previews")
    _change(values, "training", training)
    _change(values, "previews", _previews)
    for name in ("dataset", "held_out"):
        if isinstance(values.get(name), list):
            values[name] = [_dataset(folder) if isinstance(folder, dict) else folder for folder in values[name]]
    return values


def training(section: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a job's ``training`` section under today's names."""
    values = dict(section)
    if not isinstance(values.get("guidance", {}), dict):  # earlier a number, today guidance.guidance
        number, section = values.pop("guidance"), values.get("guide", {})
        values["guide"] = {**section, "guidance": number} if isinstance(section, dict) else section
    if isinstance(values.get("logs"), list):
        logs = sorted(map(str, values["logs"]))
        values["logs"] = next((name for name, writers in LOGS.items() if sorted(writers) == logs), values["logs"])
    return _sections(values, TRAINING)


def settings_of(text: str) -> TrainingSettings:
    """The settings in a LoRA's header. Raises ValueError if there are none or they cannot be read."""
    return base.read(TrainingSettings, training(json.loads(text)), "training")


def _previews(section: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    if isinstance(values.get("walk_seed"), bool):
        values["walk_seed"] = WALKING if values["walk_seed"] else FIXED
    _move(values, "walk_seed", "seeds")
    return values


def _dataset(section: Mapping[str, Any]) -> dict[str, Any]:
    values = _sections(dict(section), DATASET)
    source = values.pop("source", {})
    if not isinstance(source, dict):
        raise UserError(f"dataset.source is {source!r}; it must be a group of settings.")
    for name, value in source.items():
        if name in SOURCE:
            _put(values, f"source.{name}", SOURCE[name], value)
        elif name not in UNUSED or UNUSED[name] != value:
            raise UserError(f"dataset.source.{name} is no setting; there are {', '.join(SOURCE.values())} of dataset.")
    return values


def _sections(values: dict[str, Any], table: tuple[tuple[str, str, Names], ...]) -> dict[str, Any]:
    for before, now, names in table:
        _move(values, before, now)
        if isinstance(values.get(now), dict):
            section = dict(values[now])
            for old, new in names.items():
                _move(section, old, new)
            values[now] = section
    return values


def _change(values: dict[str, Any], name: str, change: Any) -> None:
    if isinstance(values.get(name), dict):
        values[name] = change(values[name])


def _move(values: dict[str, Any], before: str, now: str) -> None:
    if before in values and before != now:
        _put(values, before, now, values.pop(before))


def _put(values: dict[str, Any], before: str, now: str, value: Any) -> None:
    if now in values:
        raise UserError(f"{before} is the earlier name of {now}, and both are set; remove {before}.")
    values[now] = value
