"""kohya's sd-scripts: a data set file in TOML or JSON, with subsets."""

from __future__ import annotations

from typing import Any

from .common import switched, unknown
from .convert import flag, number, text, whole
from .draft import Draft, Section
from .report import Row
from .rules import Differs, each, missing, needless, special, turned, used
from .toml_data import Levels, batch, buckets, ending, flat, no_upscale, resolution

NAME = "kohya (sd-scripts, a data set file)"
ORDERS = 10  # of shuffled captions; each is encoded once
WEAK = 0.1  # color_aug's change of colours, as our strength
SIZES = "buckets are multiples of 16 pixels of about one area"


def _shuffle(value: Any, section: Section) -> str | None:
    section.put("dataset.caption_options.shuffle", ORDERS if flag(value) else 0)
    return f"{ORDERS} orders, each encoded once; a new one each time there" if flag(value) else None


def _faces(value: Any, section: Section) -> str:
    section.put("dataset.crop_options.crop_style", "face")
    return Differs("around the largest face, without a random size")


def _colours(value: Any, section: Section) -> str | None:
    if not flag(value):
        return "off"
    section.put("dataset.crop_options.color_jitter", WEAK)
    return f"{WEAK}, in one more variation of each picture; there a weak change of hue and gamma at each step"


def _flip(value: Any, section: Section) -> str | None:
    section.put("dataset.crop_options.flip_x", flag(value))
    return "both ways in every epoch; there one of them by chance" if flag(value) else None


def _lines(value: Any, section: Section) -> str | None:
    section.put("dataset.caption_options.several", "choose" if flag(value) else "join")
    return Differs("one of several lines is drawn; wildcards inside a line are not filled in") if flag(value) else None


DATA = (
    special("resolution", "dataset.resolution", "", resolution, default=512),
    special("enable_bucket", "dataset.crop_options.crop_aspect", "", buckets),
    special("bucket_no_upscale", "dataset.crop_options.upscale", "the opposite", no_upscale),
    *each(needless, "bucket_reso_steps max_bucket_reso min_bucket_reso", SIZES),
    special("batch_size", "training.batch", "", batch, default=1),
    special("train_batch_size", "training.batch", "", batch),
    special("image_dir", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("caption_extension", "dataset.captions", "", ending, default=".caption"),
    turned("class_tokens", "dataset.prompt", text, "the caption of pictures without a text file"),
    used("num_repeats", "dataset.repeats", whole),
    used("dataset_repeats", "dataset.repeats", whole),
    used("is_reg", "dataset.is_reg", flag),
    used("alpha_mask", "dataset.mask_options.alpha", flag),
    special("shuffle_caption", "dataset.caption_options.shuffle", "", _shuffle),
    used("keep_tokens", "dataset.caption_options.keep_tokens", whole),
    used("caption_separator", "dataset.caption_options.separator", text),
    used("caption_dropout_rate", "dataset.caption_options.dropout", number),
    special("enable_wildcard", "dataset.caption_options.several", "", _lines),
    special("flip_aug", "dataset.crop_options.flip_x", "", _flip),
    special("random_crop", "dataset.crop_options.crop_style", "",
        switched("dataset.crop_options.crop_style", "random", "center")),
    special("face_crop_aug_range", "dataset.crop_options.crop_style", "", _faces),
    special("color_aug", "dataset.crop_options.color_jitter", "", _colours),
    missing("caption_prefix", "set dataset.trigger, which is put in front of captions"),
    missing("caption_suffix", "edit the caption files"),
    missing("caption_dropout_every_n_epochs", "captions are dropped by chance; set caption_options.dropout"),
    missing("caption_tag_dropout_rate", "single tags are not dropped"),
    *each(missing, "keep_tokens_separator secondary_separator", "one separator; edit the caption files"),
    *each(missing, "token_warmup_min token_warmup_step", "captions are whole from the first step on"),
    missing("metadata_file", "write captions as text files, or as a .jsonl file with captions = jsonl"),
    missing("conditioning_data_dir",
        "name the folder as dataset.references, or as mask_options.folder if it holds masks"),
    used("validation_split", "training.validation_loss.share", number),
    used("validation_seed", "training.validation_loss.seed", whole),
    missing("prior_loss_weight", "set loss_weight on the regularisation folder", off=(None, 1, 1.0)),
    missing("network_multiplier", "every data set trains the LoRA at strength 1", off=(None, 1, 1.0)),
    needless("cache_info", "sizes are kept with the caches"),
    needless("resize_interpolation", "pictures are scaled with Lanczos"),
    needless("max_token_length", "FLUX.2 reads 512 tokens"),
    needless("debug_dataset", "the node shows a contact sheet"),
    needless("custom_attributes", "of its own additions"),
)  # fmt: skip
TABLES = {"general, datasets[] and datasets[].subsets[]": DATA}


def recognise(values: Any) -> bool:
    """Whether this is a data set file whose data sets have subsets."""
    sets = values.get("datasets") if isinstance(values, dict) else None
    return isinstance(sets, list) and any(isinstance(each, dict) and "subsets" in each for each in sets)


def translate(values: Any, draft: Draft) -> list[Row]:
    """A row for every key; every subset becomes a data set."""
    levels = Levels(DATA, draft)
    general = ("general.", flat(values.get("general")))
    for number_, each_set in enumerate(values["datasets"]):
        place = f"datasets[{number_}]."
        own = (place, flat(each_set, "subsets"))
        for subset, entry in enumerate(_subsets(each_set)):
            levels.add(general, own, (f"{place}subsets[{subset}].", flat(entry)))
    rest = {key: each for key, each in values.items() if key not in ("general", "datasets")}
    return levels.finished() + unknown(flat(rest))


def _subsets(each_set: Any) -> list[Any]:
    found = each_set.get("subsets") if isinstance(each_set, dict) else None
    return found if isinstance(found, list) and found else [{}]
