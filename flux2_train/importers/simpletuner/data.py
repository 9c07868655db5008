"""SimpleTuner's keys in ``multidatabackend.json`` and in a LyCORIS file: what becomes of each."""

from __future__ import annotations

from typing import Any

from ..common import area_side
from ..convert import flag, number, numbers, oneof, text, whole
from ..draft import NotHere, Section
from ..rules import Differs, each, missing, needless, special, turned, used

CAPTIONS = {"textfile": "text file", "filename": "file name", "instanceprompt": "one prompt"}
NOTE = "its resolution, minimum and maximum have one unit"


def _captions(value: Any, section: Section) -> str | None:
    section.put("dataset.captions", oneof(CAPTIONS, "captions from tables are not here; write text files")(value))
    if value == "textfile" and not flag(section.get("disable_multiline_split", False)):
        section.put("dataset.caption_options.several", "choose")
        return "one line of the file is drawn per step"
    return None


def _resolution(value: Any, section: Section) -> str | None:
    kind = str(section.get("resolution_type", "pixel_area"))
    if kind == "area":
        section.put("dataset.resolution", area_side(number(value) * 1e6, 1))
        return "megapixels of 1,000,000"
    section.put("dataset.resolution", whole(value))
    section.put("dataset.crop_options.resolution_type", kind)
    return "the shorter side" if kind == "pixel" else None


def _limit(name: str, handling: str, way: str):
    def take(value: Any, section: Section) -> str | None:
        if section.get("resolution_type") == "area":
            value = number(value) and area_side(number(value) * 1e6, 1)
        if number(value):
            section.put(f"dataset.crop_options.{name}", number(value))
            section.put(f"dataset.crop_options.{handling}", way)
            return None
        return "0 is no limit"

    return take


def _instance_prompt(value: Any, section: Section) -> str | None:
    if section.get("caption_strategy") == "instanceprompt" or flag(section.get("only_instance_prompt", False)):
        section.put("dataset.captions", "one prompt")
        section.put("dataset.prompt", text(value))
    elif flag(section.get("prepend_instance_prompt", False)):
        section.put("dataset.trigger", text(value))
        return "put in front of captions that lack it"
    else:
        return "not used by that caption_strategy"
    return None


def _regularisation(value: Any, section: Section) -> None:
    section.put("dataset.is_reg", flag(value))
    section.put("dataset.base_target", flag(value))


def _source(value: Any, section: Section) -> str | None:
    if str(value) == "local":
        return None
    section.draft.unknown.append(
        f"the pictures of {section.get('id', 'a data set')} come from {value}: download them, and set dataset.folder"
    )
    section.put("dataset.folder", str(section.get("id", "set dataset.folder")))
    raise NotHere(f"pictures must lie in a folder; download those of {section.get('dataset_name', value)}")


def _shuffle(value: Any, section: Section) -> None:
    on = flag(section.get("caption_shuffle.enable", False))
    section.put("dataset.caption_options.shuffle", whole(value) if on else 0)


def _is(section: Section, algo: str) -> bool:
    return section.get("algo", "lokr") == algo


def _is_whole(section: Section) -> bool:
    return flag(section.get("full_matrix", False))


def _full(section: Section) -> str:
    section.put("training.rank", 1024)
    return Differs(
        "the larger matrix is whole where the rank is at least half of its longer side; 1024 is the largest rank here"
    )


def _scale_one(section: Section) -> str:
    section.put("training.alpha", 0.0)
    return "a whole matrix has scale 1 whatever alpha says"


def _dora(value: Any, section: Section) -> None:
    if flag(value) and section.get("algo", "lokr") not in ("lora", "locon"):
        raise NotHere("DoRA is for LoRA alone here")
    section.put("training.adapter.dora", flag(value))


SHUFFLE_AT = oneof({"comma": ",", "space": " ", "period": "."}, "that separator is not known")
DATA_DEFAULTS = (
    special("caption_strategy", "dataset.captions", "", _captions, default="filename"),
    special("resolution", "dataset.resolution", "", _resolution, default=1024),
    special("resolution_type", "dataset.crop_options.resolution_type", "the unit of resolution", lambda v, s: None),
    special("minimum_image_size", "dataset.crop_options.minimum, too_small", "smaller pictures are left out",
        _limit("minimum", "too_small", "skip")),
    special("maximum_image_size", "dataset.crop_options.maximum, too_large", "larger pictures are scaled down first",
        _limit("maximum", "too_large", "downscale")),
    needless("target_downsample_size", "pictures are scaled down to maximum_image_size itself before they are cut"),
    used("caption_dropout_probability", "dataset.caption_options.dropout", number, default=0.1),
    special("conditioning_multidataset_sampling", "dataset.reference_options.sampling", "",
        lambda v, s: s.put("dataset.reference_options.sampling", oneof({'random': 'random', 'combined': 'combined'},
            'combined')(v))),
    missing("max_upscale_threshold", "crop_options.upscale is on or off"),
    special("prepend_instance_prompt", "dataset.trigger", "see instance_prompt", lambda v, s: None),
    special("only_instance_prompt", "dataset.prompt", "see instance_prompt", lambda v, s: None),
    special("instance_prompt", "dataset.prompt", "", _instance_prompt),
    special("disable_multiline_split", "dataset.caption_options.several", "see caption_strategy", lambda v, s: None),
)  # fmt: skip
DATA = (
    special("type", "dataset.folder", "pictures in a folder", _source),
    special("instance_data_dir", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    turned("repeats", "dataset.repeats", lambda v: whole(v) + 1, "it counts further times, so 0 is once"),
    used("probability", "dataset.probability", number),
    special("crop", "dataset.crop_options.crop", "", lambda v, s: s.put("dataset.crop_options.crop", flag(v)),
        default=False),
    turned("crop_style", "dataset.crop_options.crop_style",
        oneof({"random": "random", "center": "center", "centre": "center", "corner": "corner", "face": "face"},
            "center"), "", default="random"),
    used("crop_aspect", "dataset.crop_options.crop_aspect", text, default="square"),
    used("crop_aspect_buckets", "dataset.crop_options.aspects", numbers),
    special("is_regularisation_data", "dataset.is_reg, base_target", "towards the base model's prediction",
        _regularisation),
    special("is_regularization_data", "dataset.is_reg, base_target", "towards the base model's prediction",
        _regularisation),
    used("timestep_sampling_offset", "dataset.timestep_offset", number),
    used("max_num_samples", "dataset.max_samples", whole),
    special("caption_shuffle.count", "dataset.caption_options.shuffle", "", _shuffle),
    special("caption_shuffle.enable", "dataset.caption_options.shuffle", "see count", lambda v, s: None),
    used("caption_shuffle.seed", "dataset.caption_options.seed", whole),
    turned("caption_shuffle.split_on", "dataset.caption_options.separator", SHUFFLE_AT, "the sign itself"),
    used("caption_shuffle.position_start", "dataset.caption_options.keep_tokens", whole),
    missing("caption_shuffle.include_original", "every order is drawn", off=(None, True)),
    special("conditioning_data", "dataset.references, dataset.mask_options.folder", "the data sets of these names",
        lambda v, s: None),
    special("conditioning_type", "dataset.reference_options.kind", "of the data set that names it", lambda v, s: None),
    needless("id", "a name for caches"),
    needless("dataset_type", "pictures"),
    special("disabled", "", "left out", lambda v, s: None),
    special("disable", "", "left out", lambda v, s: None),
    missing("conditioning", "references are files here; none are made from the pictures"),
    missing("slider_strength", "its slider scales the LoRA by data set; Concept Slider learns from pairs or prompts"),
    missing("minimum_aspect_ratio", "no limit of shapes"),
    missing("maximum_aspect_ratio", "no limit of shapes"),
    missing("caption_filter_list", "edit the caption files"),
    missing("start_epoch", "folders begin together", off=(None, 0, 1)),
    missing("start_step", "folders begin together"),
    missing("end_epoch", "folders end together"),
    missing("end_step", "folders end together"),
    missing("disable_after_epoch_step", "folders end together"),
    needless("train_batch_size", "one batch size for all"),
    needless("dataset_name", "pictures must lie in a folder"),
    needless("huggingface", "pictures must lie in a folder"),
    *each(needless,
        "aws_bucket_name aws_data_prefix aws_endpoint_url aws_region_name aws_access_key_id aws_secret_access_key "
        "aws_session_token aws_max_pool_connections", "pictures must lie in a folder"),
    *each(needless,
        "csv csv_file csv_cache_dir csv_caption_column csv_url_column csv_hash_filenames csv_shorten_filenames",
        "pictures must lie in a folder"),
    needless("parquet", "pictures must lie in a folder"),
    needless("webshart", "pictures must lie in a folder"),
    needless("metadata_backend", "sizes are read from the files"),
    needless("bucket_report", "the node shows buckets"),
    needless("disable_validation", "one list of prompts for all"),
    needless("hash_filenames", "caches"),
    *each(needless,
        "vae_cache_clear_each_epoch vae_cache_disable vae_cache_ondemand vae_cache_scan_behaviour disable_vae_cache",
        "caches notice what changed"),
    needless("scan_for_errors", "broken files are named"),
    needless("default", "of caches"),
    needless("text_embeds", "of caches"),
    needless("image_embeds", "of caches"),
    needless("source_dataset_id", "a data set names its references"),
    needless("auto_generated", "made by itself"),
    *each(needless, "config hf_token revision split subfolder streaming shorten_filenames image_column caption_column",
        "pictures must lie in a folder"),
    missing("composite_image_config", "pictures are not put together"),
    missing("audio", "pictures only"),
)  # fmt: skip
LYCORIS = (
    turned("algo", "training.adapter.kind",
        oneof({"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}, "this kind is not here"),
        "the same name"),
    special("linear_dim", "training.rank", "",
        lambda v, s: "see full_matrix" if _is_whole(s) else s.put("training.rank", whole(v))),
    special("linear_alpha", "training.alpha", "",
        lambda v, s: _scale_one(s) if _is_whole(s) else s.put("training.alpha", number(v))),
    special("full_matrix", "training.rank", "", lambda v, s: _full(s) if flag(v) else None),
    special("factor", "training.adapter.lokr_factor", "",
        lambda v, s: s.put("training.adapter.lokr_factor", whole(v)) if _is(s, "lokr") else None),
    special("decompose_both", "training.adapter.lokr_decompose_both", "",
        lambda v, s: s.put("training.adapter.lokr_decompose_both", flag(v)) if _is(s, "lokr") else None),
    used("dropout", "training.adapter.dropout", number),
    special("dora_wd", "training.adapter.dora", "", lambda v, s: _dora(v, s)),
    needless("bypass_mode", "adapters are always computed beside the layer"),
    needless("use_tucker", "for convolutions"),
    needless("conv", "FLUX.2 has no convolutions"),
    missing("multiplier", "1 here", off=(None, 1, 1.0)),
    missing("rank_dropout", "not here"),
    missing("module_dropout", "not here"),
    missing("constraint", "not here"),
    missing("rescaled", "not here"),
    missing("train_norm", "not here"),
    missing("apply_preset",
        "classes of diffusers, and factors for each: choose layers with targets, include and ranks"),
)  # fmt: skip
