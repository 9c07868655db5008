"""AI Toolkit (ostris): a job as YAML or JSON, also as its window stores it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .. import reading
from ..common import switched, unread
from ..convert import flag, number, numbers, text, whole
from ..draft import Draft, NotHere, Section
from ..report import Row
from ..rules import Differs, always, apply, each, missing, needless, special, turned, used
from . import keys
from .values import DIFFUSERS_ONLY

NAME = "AI Toolkit"
VIDEO = "pictures only"
PROCESS = re.compile(r"config\.process\[(\d+)\]\.")
DATA_SET = re.compile(r"datasets\[(\d+)\]\.")
ORDERS = 10  # of shuffled captions; each is encoded once


def _resolution(value: Any, section: Section) -> None:
    sizes = [whole(each) for each in (value if isinstance(value, list) else [value])]
    if len(sizes) == 1:
        section.put("dataset.resolution", sizes[0])
    else:
        section.put("dataset.resolution", max(sizes))
        section.put("dataset.crop_options.resolutions", sizes)
        section.put("dataset.crop_options.use", "each")


def _dropout(value: Any, section: Section) -> str | None:
    section.put("dataset.caption_options.dropout", number(value))
    if number(value) and (section.get("trigger_word") or section.draft.common.get("trigger")):
        section.put("dataset.caption_options.dropout_caption", "[trigger]")
        return "the trigger stays"
    return None


def _ending(value: Any, section: Section) -> str | None:
    section.put("dataset.captions", "text file")
    if str(value).lstrip(".") not in ("txt", "caption", "json"):
        return Differs("only .txt, .caption and .json are read here; rename the files")
    return None


def _shuffle(value: Any, section: Section) -> str | None:
    section.put("dataset.caption_options.shuffle", ORDERS if flag(value) else 0)
    return f"{ORDERS} orders, each encoded once; a new one each time there" if flag(value) else None


def _reference(value: Any, section: Section) -> str | None:
    folders = [str(each) for each in (value if isinstance(value, list) else [value]) if each]
    section.put("dataset.references", [*(section.ours("dataset.references") or []), *folders])
    return None


def _colour(value: Any) -> str:
    found = [min(max(round(each), 0), 255) for each in numbers(value)]
    if len(found) != 3:
        raise NotHere("it is no colour of three numbers")
    red, green, blue = found
    return f"#{red:02x}{green:02x}{blue:02x}"


def _tag_dropout(value: Any, section: Section) -> str:
    section.put("dataset.caption_options.tag_dropout", number(value))
    section.put_default("dataset.caption_options.shuffle", VARIATIONS)
    section.put("dataset.caption_options.keep_order", not flag(section.get("shuffle_tokens", False)))
    return f"in {VARIATIONS} variations of each caption, each of which is encoded"


VARIATIONS = 10
DATA = (
    special("folder_path", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("dataset_path", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("resolution", "dataset.resolution, crop_options.resolutions", "every picture at each of several sizes",
        _resolution, default=512),
    special("caption_ext", "dataset.captions", "text files", _ending, default=".txt"),
    turned("default_caption", "dataset.prompt", text, "the caption of pictures without one"),
    special("caption_dropout_rate", "dataset.caption_options.dropout", "", _dropout),
    special("shuffle_tokens", "dataset.caption_options.shuffle", "", _shuffle),
    used("keep_tokens", "dataset.caption_options.keep_tokens", whole),
    special("token_dropout_rate", "dataset.caption_options.tag_dropout", "", _tag_dropout),
    missing("replacements", "edit the caption files"),
    *each(missing, "random_triggers random_triggers_max", "one trigger"),
    *each(missing, "augmentations augments", "pictures are flipped and cropped only"),
    missing("shuffle_augmentations", "pictures are flipped and cropped only"),
    used("trigger_word", "dataset.trigger", text),
    used("num_repeats", "dataset.repeats", whole),
    used("is_reg", "dataset.is_reg", flag),
    used("prior_reg", "dataset.base_target", flag),
    used("loss_multiplier", "dataset.loss_weight", number),
    missing("network_weight", "every data set trains the LoRA at strength 1", off=(None, 1, 1.0)),
    *each(special, "control_path control_path_1 control_path_2 control_path_3", "dataset.references",
        "folders of references", _reference),
    turned("control_transparent_color", "dataset.background", _colour, "a colour name or #rrggbb"),
    missing("controls", "references are files here; none are made from the pictures"),
    missing("inpaint_path", "not here"),
    needless("full_size_control_images", "references keep their size until they are encoded"),
    used("flip_x", "dataset.crop_options.flip_x", flag),
    used("flip_y", "dataset.crop_options.flip_y", flag),
    special("random_crop", "dataset.crop_options.crop_style", "",
        switched("dataset.crop_options.crop_style", "random", "center")),
    special("square_crop", "dataset.crop_options.crop_aspect", "",
        lambda v, s: s.put("dataset.crop_options.crop_aspect", "square") if flag(v) else "off"),
    missing("random_scale", "not here"),
    missing("scale", "not here", off=(None, 1, 1.0)),
    missing("poi", "crop_style face"),
    special("mask_path", "dataset.mask_options.folder", "",
        lambda v, s: s.put_folder("dataset.mask_options.folder", text(v))),
    used("alpha_mask", "dataset.mask_options.alpha", flag),
    used("invert_mask", "dataset.mask_options.invert", flag),
    used("mask_min_value", "dataset.mask_options.minimum", number),
    used("diff_output_preservation_class", "dataset.class_word", text),
    needless("diff_output_preservation", "see train.diff_output_preservation"),
    *each(always, "cache_latents cache_latents_num_workers cache_latents_to_disk", "latents are always cached"),
    always("cache_text_embeddings", "embeds are always cached"),
    *each(always, "cache_clip_vision_to_disk cache_tensors_to_disk", "caches are kept by themselves"),
    always("load_image_when_caching_latents", "caches"),
    used("batch_size", "dataset.batch", whole),
    always("buckets", "pictures are grouped by size"),
    always("bucket_tolerance", "sizes are multiples of 16"),
    needless("type", "pictures"),
    special("caption_type", "dataset.captions", "", lambda v, s: _ending(v, s)),
    needless("shrink_video_to_frames", VIDEO),
    needless("num_frames", VIDEO),
    needless("fps", VIDEO),
    *each(needless, "do_audio do_i2v", VIDEO),
    *each(needless, "audio_normalize audio_preserve_pitch", VIDEO),
    *each(needless, "auto_frame_count trim_auto_frame_count_tail", VIDEO),
    needless("num_workers", "caches"),
    needless("prefetch_factor", "caches"),
    needless("debug", "messages"),
    needless("fast_image_size", "sizes are read from headers"),
    *each(needless,
        "clip_image_augmentations clip_image_from_same_folder clip_image_path clip_image_shuffle_augmentations",
        DIFFUSERS_ONLY),
    missing("unconditional_path", "not here"),
    missing("guidance_type", "not here"),
    missing("use_short_captions", "edit the caption files"),
    missing("standardize_images", "not here"),
    missing("control_from_same_folder", "name the folder of references"),
    needless("num_controls_from_same_folder", "see there"),
    missing("replay_transforms", "not here"),
    missing("extra_values", DIFFUSERS_ONLY),
)  # fmt: skip
UI_JOB = tuple(
    needless(key, "of its window's list of jobs")
    for key in ("id", "name", "gpu_ids", "created_at", "updated_at", "status", "stop", "step", "info", "speed_string",
                "queue_position", "return_to_queue", "pid", "job_type", "job_ref", "total_steps")
)  # fmt: skip
MAIN = (*keys.MODEL, *keys.NETWORK, *keys.SAVE, *keys.TRAIN, *keys.SAMPLE, *keys.PROCESS)
TABLES = {
    "job": (*keys.TOP, *keys.PROCESS), "model": keys.MODEL, "network": keys.NETWORK, "save": keys.SAVE,
    "train": keys.TRAIN, "datasets[]": DATA, "sample": keys.SAMPLE,
}  # fmt: skip


def recognise(values: Any) -> bool:
    """Whether this is a job with processes, or a row of its window's list of jobs."""
    if not isinstance(values, dict):
        return False
    config = values.get("config")
    return "job_config" in values or (isinstance(config, dict) and isinstance(config.get("process"), list))


def translate(values: Mapping[str, Any], draft: Draft) -> list[Row]:
    """A row for every key; the job goes into the draft."""
    rows: list[Row] = []
    prefix = ""
    if "job_config" in values:
        stored = values["job_config"]
        rows = apply(UI_JOB, draft.section({key: value for key, value in values.items() if key != "job_config"}))
        values, prefix = (json.loads(stored) if isinstance(stored, str) else stored), "job_config."
    parts: dict[int, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key, value in reading.leaves(values).items():
        match = PROCESS.match(key)
        (parts.setdefault(int(match[1]), {}) if match else top)[key[match.end() :] if match else key] = value
    rows += apply(keys.TOP, draft.section(top, prefix))
    for number_, part in sorted(parts.items()):
        place = f"{prefix}config.process[{number_}]."
        rows += (
            _process(part, place, draft)
            if number_ == min(parts)
            else unread(part, place, "only the first process is read")
        )
    return rows


def _process(values: dict[str, Any], place: str, draft: Draft) -> list[Row]:
    data: dict[int, dict[str, Any]] = {}
    main: dict[str, Any] = {}
    for key, value in values.items():
        match = DATA_SET.match(key)
        (data.setdefault(int(match[1]), {}) if match else main)[key[match.end() :] if match else key] = value
    section = draft.section(main, place)
    draft.common["crop_options"] = {"crop_aspect": "preserve", "upscale": False}
    draft.notes.append(
        "AI Toolkit keeps the shape of every picture and scales none up: crop_aspect is preserve, and upscale is off."
    )
    rows = apply(MAIN, section)
    if section.get("train.disable_sampling") is True:
        draft.values.get("previews", {}).pop("prompts", None)
    for number_, part in sorted(data.items()):
        rows += apply(DATA, draft.section(part, f"{place}datasets[{number_}].", draft.new_dataset()))
    return rows
