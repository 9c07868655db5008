"""OneTrainer: a preset or a whole configuration as JSON, with its concepts and samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .. import reading
from ..common import add_prompts, switched, unread
from ..convert import flag, lines, number, oneof, text, whole
from ..draft import Draft, NotHere, Section
from ..report import Row
from ..rules import Differs, apply, each, missing, needless, special, used
from . import keys
from .values import nothing, resolution

NAME = "OneTrainer"
ENTRY = re.compile(r"(concepts|samples)\[(\d+)\]\.")
FIXED = "pictures are only varied at random here, not all changed alike"
CHANNELS = ("brightness", "contrast", "saturation", "hue")
STEEPEST = 45.0  # degrees
ORDERS = 10  # of shuffled captions; each is encoded once


def _balancing(value: Any, section: Section) -> str | None:
    if section.get("balancing_strategy", "REPEATS") == "SAMPLES":
        section.put("dataset.max_samples", whole(value))
        return Differs("always the same ones; there others in every epoch")
    if number(value) < 1:
        section.put("dataset.probability", number(value))
        return "a part of the pictures in every epoch"
    section.put("dataset.repeats", round(number(value)))
    return None if number(value) == round(number(value)) else Differs("whole numbers only")


def _source(value: Any, section: Section) -> str | None:
    names = {"sample": "text file", "filename": "file name", "concept": "one prompt"}
    section.put("dataset.captions", oneof(names, "text files, file names or one prompt")(value))
    if value == "concept":
        return Differs("one prompt for all: write it into dataset.prompt, or name text files")
    if value == "sample":
        section.put("dataset.caption_options.several", "choose")
        return "one line of the file is drawn per step"
    return None


def _shuffle(value: Any, section: Section) -> str | None:
    section.put("dataset.caption_options.shuffle", ORDERS if flag(value) else 0)
    return f"{ORDERS} orders, each encoded once" if flag(value) else None


def _kind(value: Any, section: Section) -> str | None:
    if value == "PRIOR_PREDICTION":
        section.put("dataset.is_reg", True)
        section.put("dataset.base_target", True)
    return "held_out" if value == "VALIDATION" else None


def _own_size(value: Any, section: Section) -> str | None:
    if not flag(section.get("image.enable_resolution_override", False)):
        return "off"
    return resolution(value, section)


def _tag_dropout(value: Any, section: Section) -> str | None:
    """Of its three ways only the one that drops each tag with one probability."""
    if not flag(value):
        return "off"
    mode = str(section.get("text.tag_dropout_mode", "FULL"))
    if mode != "RANDOM":
        raise NotHere(f"its mode {mode} drops other tags; only RANDOM is here")
    section.put("dataset.caption_options.tag_dropout", number(section.get("text.tag_dropout_probability", 0.0)))
    section.put_default("dataset.caption_options.shuffle", ORDERS)
    section.put("dataset.caption_options.keep_order", not flag(section.get("text.enable_tag_shuffling", False)))
    return f"in {ORDERS} variations of each caption, each of which is encoded"


def _rotation(value: Any, section: Section) -> str | None:
    if not flag(value):
        return "off"
    angle = number(section.get("image.random_rotate_max_angle", 0.0))
    section.put("dataset.crop_options.rotation", min(angle, STEEPEST))
    return (
        "as variations besides the picture as it is" if angle <= STEEPEST else Differs(f"at most {STEEPEST:g} degrees")
    )


def _colours(value: Any, section: Section) -> str | None:
    if not flag(value):
        return "off"
    on = [name for name in CHANNELS if flag(section.get(f"image.enable_random_{name}", False))]
    strengths = [number(section.get(f"image.random_{name}_max_strength", 0.0)) for name in on]
    section.put("dataset.crop_options.color_jitter", min(max(strengths), 1.0))
    return Differs("brightness, contrast, saturation and hue change together, by the largest of its strengths")


def _variations(value: Any, section: Section) -> str | None:
    if whole(value) <= 1:
        return "one"
    if not any(flag(section.get(f"image.enable_random_{name}", False)) for name in ("rotate", *CHANNELS)):
        raise NotHere("pictures are neither turned nor recoloured; crop_options.crops makes several random crops")
    section.put("dataset.crop_options.variations", whole(value))
    return "besides the picture as it is"


CONCEPT = (
    special("path", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("type", "dataset.is_reg, dataset.base_target", "", _kind),
    used("include_subdirectories", "dataset.subfolders", flag, default=False),
    special("balancing", "dataset.repeats", "", _balancing),
    special("balancing_strategy", "dataset.repeats", "see balancing", nothing),
    used("loss_weight", "dataset.loss_weight", number),
    special("text.prompt_source", "dataset.captions", "", _source),
    missing("text.prompt_path", "write its prompt into dataset.prompt"),
    special("text.enable_tag_shuffling", "dataset.caption_options.shuffle", "", _shuffle),
    used("text.tag_delimiter", "dataset.caption_options.separator", text),
    used("text.keep_tags_count", "dataset.caption_options.keep_tokens", whole),
    special("text.tag_dropout_enable", "dataset.caption_options.tag_dropout", "", _tag_dropout),
    *each(special, "text.tag_dropout_mode text.tag_dropout_probability", "dataset.caption_options.tag_dropout",
        "see tag_dropout_enable", nothing),
    *each(missing,
        "text.tag_dropout_special_tags_mode text.tag_dropout_special_tags text.tag_dropout_special_tags_regex",
        "all parts but the first keep_tokens are dropped alike", off=("", "NONE", None, False)),
    missing("text.caps_randomize_enable", "capitals stay"),
    *each(needless, "text.caps_randomize_mode text.caps_randomize_probability text.caps_randomize_lowercase",
        "see caps_randomize_enable"),
    special("image.enable_crop_jitter", "dataset.crop_options.crop_style", "",
        switched("dataset.crop_options.crop_style", "random", "center")),
    special("image.enable_random_flip", "dataset.crop_options.flip_x", "both ways in every epoch; there by chance",
        switched("dataset.crop_options.flip_x", True, False)),
    missing("image.enable_fixed_flip", "pictures are not only flipped"),
    special("image.enable_resolution_override", "dataset.resolution", "see resolution_override", nothing),
    special("image.resolution_override", "dataset.resolution", "", _own_size),
    *each(missing,
        "image.enable_fixed_rotate image.enable_fixed_brightness image.enable_fixed_contrast "
        "image.enable_fixed_saturation image.enable_fixed_hue", FIXED),
    *each(missing, "image.enable_random_circular_mask_shrink image.enable_random_mask_rotate_crop",
        "masks are not changed by themselves"),
    special("image.enable_random_rotate", "dataset.crop_options.rotation", "", _rotation),
    special("image.random_rotate_max_angle", "dataset.crop_options.rotation", "see enable_random_rotate", nothing),
    *(special(f"image.enable_random_{name}", "dataset.crop_options.color_jitter", "", _colours) for name in CHANNELS),
    *(special(f"image.random_{name}_max_strength", "dataset.crop_options.color_jitter", f"see enable_random_{name}",
        nothing) for name in CHANNELS),
    special("image_variations", "dataset.crop_options.variations", "", _variations),
    missing("text_variations", "one line of several is drawn per step", off=(None, 1)),
    needless("name", "folders are named by their paths"),
    needless("seed", "training.seed fixes everything"),
    needless("enabled", "concepts that are off are left out"),
    needless("concept_stats", "counts of its window"),
)  # fmt: skip
MAIN = (*keys.MODEL, *keys.ADAPTER, *keys.TRAINING, *keys.FILES, *keys.OPTIMIZER_REST)
# Rules for whole parts, such as everything below ``text_encoder``, come after those for single keys of them.
ORDERED = (*(rule for rule in MAIN if "." in rule.key), *(rule for rule in MAIN if "." not in rule.key))
TABLES = {
    "model": keys.MODEL, "adapter": keys.ADAPTER, "training": keys.TRAINING, "optimizer": keys.OPTIMIZER_REST,
    "files": keys.FILES, "concepts[]": CONCEPT, "samples[]": keys.SAMPLE,
}  # fmt: skip


def recognise(values: Any) -> bool:
    """Whether this is a configuration, or a list of concepts."""
    if isinstance(values, list):
        return bool(values) and all(isinstance(each, dict) and {"path", "text"} <= each.keys() for each in values)
    names = {"training_method", "model_type", "base_model_name", "output_model_format", "peft_type"}
    return isinstance(values, dict) and len(names & values.keys()) >= 2 and "process" not in values


def translate(values: Any, draft: Draft) -> list[Row]:
    """A row for every key; the job goes into the draft."""
    if isinstance(values, list):
        return list(_concepts(values, draft, ""))
    main: dict[str, Any] = {}
    for key, value in reading.leaves(values).items():
        if not ENTRY.match(key):
            main[key] = value
    section = draft.section(main)
    rows = apply(ORDERED, section)
    rows += _concepts(_list(values.get("concepts")), draft, "concepts")
    rows += _samples(_list(values.get("samples")), draft, "samples")
    return [*rows, *_files(section)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) and any(isinstance(each, dict) for each in value) else []


def _files(section: Section) -> Iterator[Row]:
    draft = section.draft
    path = draft.data or reading.beside(draft.path, section.get("concept_file_name"))
    draft.data = None
    if path is not None:
        yield from _concepts(_list(reading.read(path)), draft, f"{path.name}: ")
    path = reading.beside(draft.path, section.get("sample_definition_file_name"))
    if path is not None:
        yield from _samples(_list(reading.read(path)), draft, f"{path.name}: ")


def _concepts(entries: list[Any], draft: Draft, prefix: str) -> Iterator[Row]:
    for number_, entry in enumerate(entries):
        values, place = reading.leaves(entry), f"{prefix}[{number_}]."
        if values.get("enabled") is False:
            yield from unread(values, place, "switched off in the file")
        elif values.get("type") == "VALIDATION":
            target: dict[str, Any] = {}
            draft.values.setdefault("held_out", []).append(target)
            yield from apply(CONCEPT, draft.section(values, place, target))
        else:
            yield from apply(CONCEPT, draft.section(values, place, draft.new_dataset()))


def _samples(entries: list[Any], draft: Draft, prefix: str) -> Iterator[Row]:
    for number_, entry in enumerate(entries):
        values, place = reading.leaves(entry), f"{prefix}[{number_}]."
        if values.get("enabled") is False or not lines(values.get("prompt")):
            yield from unread(values, place, "switched off in the file, or without a prompt")
            continue
        section = draft.section(values, place)
        first = section.ours("previews.prompts") is None
        add_prompts(section, lines(values["prompt"])[:1])
        rows = apply(keys.SAMPLE, section if first else Draft(draft.path).section(values, place))
        yield from rows if first else (_later(row) for row in rows)


def _later(row: Row) -> Row:
    if row.short == "prompt":
        return row
    return Row(row.key, row.value, row.verdict, row.ours, "as the first sample says, for all prompts", part=row.part)
