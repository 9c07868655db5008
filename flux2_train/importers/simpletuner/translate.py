"""SimpleTuner: ``config.json`` with its ``multidatabackend.json`` and LyCORIS file, or either of the two alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import reading
from ..common import unread
from ..draft import Draft, Section
from ..report import NOT_APPLICABLE, Row
from ..rules import ABSENT, Rule, apply, needless, special
from . import keys
from .data import DATA, DATA_DEFAULTS, LYCORIS
from .groups import GROUPS

NAME = "SimpleTuner"
REFERENCES = ("reference_strict", "reference_loose")
FOLLOW = "references and masks follow their pictures"
DATA_MARKS = {"dataset_type", "instance_data_dir", "metadata_backend", "cache_dir_vae", "caption_strategy"}
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
        return any(isinstance(each, dict) and DATA_MARKS & each.keys() for each in values)
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
    if lycoris:
        rows += _lycoris(section)
    return [*rows, *_data_file(section)]


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
    every = [reading.leaves(entry) for entry in entries]
    beside = {str(values.get("id", number)): values for number, values in enumerate(every)}
    for number, values in enumerate(every):
        place, kind = f"{prefix}[{number}].", str(values.get("dataset_type") or "image")
        if kind in CACHE_TYPES or _is_off(values):
            why = "switched off in the file" if _is_off(values) else "a place for caches, kept by itself"
            yield from unread(values, place, why)
        elif kind == "conditioning":
            yield from _conditioning(values, place, draft, _is_named(values, beside))
        elif kind in ("image", "eval"):
            yield from _pictures(values, place, draft, beside, kind == "eval")
        else:
            draft.blockers.append(f"{place}dataset_type is {kind}; this pack trains on pictures.")
            yield from apply((*DATA, *DATA_DEFAULTS), draft.section(values, place, {}), defaults=False)


def _is_off(values: dict[str, Any]) -> bool:
    return any(str(values.get(key)).lower() == "true" for key in ("disabled", "disable"))


def _pictures(values: dict[str, Any], place: str, draft: Draft, beside: dict[str, dict], held_out: bool) -> list[Row]:
    """A data set, with the folders of the conditioning data sets that it names."""
    if held_out:
        target: dict[str, Any] = {}
        draft.values.setdefault("held_out", []).append(target)
    else:
        target = draft.new_dataset()
    section = draft.section(values, place, target)
    rows = apply((*DATA_DEFAULTS, *DATA, *keys.CACHES, *GROUPS), section)
    for name in _named(values):
        if name in beside and str(beside[name].get("dataset_type")) == "conditioning" and not _is_off(beside[name]):
            _give(section, beside[name])
    return rows


def _named(values: dict[str, Any]) -> list[str]:
    named = values.get("conditioning_data")
    return [str(name) for name in (named if isinstance(named, list) else [named]) if name is not None]


def _is_named(values: dict[str, Any], beside: dict[str, dict]) -> bool:
    return any(str(values.get("id")) in _named(other) for other in beside.values() if not _is_off(other))


def _give(section: Section, conditioning: dict[str, Any]) -> None:
    kind, folder = str(conditioning.get("conditioning_type")), conditioning.get("instance_data_dir")
    if not folder or kind not in (*REFERENCES, "mask"):
        return
    scratch = section.draft.section({}, "", {})
    scratch.put_folder("dataset.folder", str(folder))
    found = scratch.ours("dataset.folder")
    if kind == "mask":
        section.put("dataset.mask_options.folder", found)
        return
    section.put("dataset.references", [*(section.ours("dataset.references") or []), found])
    section.put("dataset.reference_options.kind", kind.removeprefix("reference_"))
    section.put("training.guidance.references", "index_timestep_zero")
    note = "SimpleTuner shows references as clean (t = 0): guidance.references is index_timestep_zero."
    section.draft.notes += [note] * (note not in section.draft.notes)


def _conditioning(values: dict[str, Any], place: str, draft: Draft, named: bool) -> list[Row]:
    """Rows for a data set of references or masks, which go into the data set that names it."""
    kind = str(values.get("conditioning_type"))
    if not named or kind not in (*REFERENCES, "mask"):
        why = "no data set names it in conditioning_data" if not named else f"{kind} is not here"
        return unread(values, place, why, differs=named)
    where = "dataset.mask_options.folder" if kind == "mask" else "dataset.references"
    follow = tuple(replace(rule, take=None, verdict=NOT_APPLICABLE, why=FOLLOW, off=(), differs=False, default=ABSENT)
                   for rule in (*DATA, *DATA_DEFAULTS, *keys.CACHES, *GROUPS))  # fmt: skip
    own = (
        special("instance_data_dir", where, "of the data set that names it", lambda value, section: None),
        special("conditioning_type", where, "its kind", lambda value, section: None),
    )
    return apply((*own, *follow), draft.section(values, place, {}), defaults=False)
