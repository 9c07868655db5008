"""SimpleTuner: ``config.json`` with its ``multidatabackend.json`` and LyCORIS file, or either of the two alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import reading
from ..common import unread
from ..convert import flag
from ..draft import Draft, Section
from ..report import Row
from ..rules import Rule, apply, needless, special
from . import keys
from .data import DATA, DATA_DEFAULTS, LYCORIS
from .groups import GROUPS

NAME = "SimpleTuner"
REFERENCES = ("reference_strict", "reference_loose")
CACHE_TYPES = ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache")


LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout", "flux_lora_target", "use_dora")
TABLES = {
    "config.json: model": keys.MODEL, "config.json: adapter": keys.ADAPTER, "config.json: training": keys.TRAINING,
    "config.json: previews": keys.PREVIEWS, "config.json: files, memory, machine": keys.PLACES + keys.CACHES,
    "config.json and multidatabackend.json": DATA_DEFAULTS, "config.json: groups": GROUPS,
    "multidatabackend.json": DATA, "lycoris_config.json": LYCORIS,
}  # fmt: skip
CONFIG = (
    *keys.MODEL, *keys.ADAPTER, *keys.TRAINING, *keys.PREVIEWS, *DATA_DEFAULTS, *keys.PLACES, *keys.CACHES, *GROUPS
)  # fmt: skip
FILES = (
    special("lycoris_config", "training.adapter", "its file is read if it lies beside this one", lambda v, s: None),
    special("data_backend_config", "dataset", "its file is read if it lies beside this one, or from --dataset",
        lambda v, s: None),
)  # fmt: skip


def recognise(values: Any) -> bool:
    """Whether these are the values of SimpleTuner's config or of its list of data sets."""
    if isinstance(values, list):
        return any(
            isinstance(each, dict) and ("dataset_type" in each or "instance_data_dir" in each) for each in values
        )
    names = {str(key).lstrip("-") for key in values} if isinstance(values, dict) else set()
    return bool(names & {"data_backend_config", "model_family"}) or {"algo", "apply_preset"} <= names


def translate(values: Any, draft: Draft) -> list[Row]:
    """A row for every key; the job goes into the draft."""
    draft.values["model"] = {"variant": "base"}
    if isinstance(values, list):
        return [*_defaults(draft), *_datasets(values, draft, "")]
    if "algo" in values:
        return apply(LYCORIS, draft.section(reading.leaves(values)))
    flat = {key.lstrip("-"): value for key, value in reading.leaves(values).items()}
    section = draft.section(flat)
    lycoris = section.get("lora_type") == "lycoris"
    rows = apply((*FILES, *_without_lora(lycoris), *CONFIG), section)
    return rows + [*_lycoris(section)] * lycoris + [*_data_file(section)]


def _without_lora(lycoris: bool) -> tuple[Rule, ...]:
    """With LyCORIS the keys of plain LoRA do nothing."""
    return tuple(needless(key, "lycoris_config says it for lora_type lycoris") for key in LORA_ONLY) * lycoris


def _defaults(draft: Draft) -> list[Row]:
    return apply(DATA_DEFAULTS, draft.section({}))


def _lycoris(section: Section) -> Iterator[Row]:
    path = reading.beside(section.draft.path, section.get("lycoris_config"))
    if path is None:
        section.draft.notes.append(
            "The LyCORIS file does not lie beside the configuration: set training.adapter by hand."
        )
        return
    yield from apply(LYCORIS, section.draft.section(reading.leaves(reading.read(path)), f"{path.name}: "))


def _data_file(section: Section) -> Iterator[Row]:
    draft = section.draft
    path = draft.data or reading.beside(draft.path, section.get("data_backend_config"))
    draft.data = None
    if path is not None:
        values = reading.read(path)
        yield from _datasets(values if isinstance(values, list) else [values], draft, f"{path.name}: ")


def _datasets(entries: list[Any], draft: Draft, prefix: str) -> Iterator[Row]:
    found: dict[str, dict[str, Any]] = {}
    for number_, entry in enumerate(entries):
        values = reading.leaves(entry)
        place = f"{prefix}[{number_}]."
        kind = str(values.get("dataset_type") or "image")
        off = flag(values.get("disabled") or values.get("disable") or False)
        if kind in CACHE_TYPES or off:
            yield from unread(
                values, place, "switched off in the file" if off else "a place for caches, kept by itself"
            )
            continue
        target = draft.new_dataset() if kind == "image" else {}
        if kind == "eval":
            draft.values.setdefault("held_out", []).append(target)
        elif kind not in ("image", "conditioning"):
            draft.blockers.append(f"{place}dataset_type is {kind}; this pack trains on pictures.")
        yield from apply(
            (*DATA_DEFAULTS, *DATA, *keys.CACHES, *GROUPS),
            draft.section(values, place, target),
            kind == "image",
        )
        found[str(values.get("id", number_))] = {**values, "folder": target.get("folder")}
        if kind == "image":
            target["__conditioning"] = values.get("conditioning_data")
    _connect(draft, found)


def _connect(draft: Draft, found: dict[str, dict[str, Any]]) -> None:
    """Give the data sets the folders of the conditioning data sets that they name."""
    for dataset in draft.datasets:
        named = dataset.pop("__conditioning", None)
        for name in named if isinstance(named, list) else [named] * (named is not None):
            _give(draft, dataset, found.get(str(name), {}))


def _give(draft: Draft, dataset: dict[str, Any], conditioning: dict[str, Any]) -> None:
    kind, folder = conditioning.get("conditioning_type"), conditioning.get("folder")
    if folder and kind in REFERENCES:
        dataset["references"] = [*dataset.get("references", []), folder]
        dataset.setdefault("reference_options", {})["kind"] = kind.removeprefix("reference_")
        draft.values.setdefault("training", {}).setdefault("guidance", {})["references"] = "index_timestep_zero"
        note = "SimpleTuner shows references as clean (t = 0): guidance.references is index_timestep_zero."
        draft.notes += [note] * (note not in draft.notes)
    elif folder and kind == "mask":
        dataset.setdefault("mask_options", {})["folder"] = folder
