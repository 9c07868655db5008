"""musubi-tuner: its command lines for FLUX.2, the same options in a TOML file, and its data set file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import reading
from ..commands import commands
from ..common import COMPILED, NO_UPLOAD, area_side, logs, model_place, switched, unknown
from ..convert import file_name, flag, number, oneof, share, text, whole
from ..draft import Draft, NotHere, Section
from ..report import Row
from ..rules import Differs, Rule, always, apply, each, missing, needless, special, turned, used
from ..toml_data import Levels, batch, buckets, ending, flat, no_upscale, resolution, sides
from . import values as values_of
from .values import nothing

NAME = "musubi-tuner"
TRAIN, LATENTS, TEXTS = "flux_2_train_network", "flux_2_cache_latents", "flux_2_cache_text_encoder_outputs"
SCRIPTS = (TRAIN, LATENTS, TEXTS)
SPEED = "how it computes, not what"
VIDEO = "this pack trains on pictures"


def _steps(value: Any, section: Section) -> str | None:
    if section.get("max_train_epochs") is not None:
        return "max_train_epochs counts"
    section.put("training.steps", whole(value))
    return None


def _epochs(value: Any, section: Section) -> str:
    section.put("training.steps", 0)
    section.put("training.epochs", whole(value))
    return "0 steps count epochs"


def _precision(place: str):
    known = {"float": "fp32", "fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16"}
    return lambda value, section: section.put(place, oneof(known, "fp32 or bf16")(value))


def _control(value: Any, section: Section) -> str:
    section.put("dataset.references", [text(value)])
    if not flag(section.get("no_resize_control", False)) and section.get("control_resolution") is None:
        section.put("dataset.reference_options.kind", "strict")
        return Differs("cut as their pictures are")
    return "numbered files (name_0, name_1) are several references of one picture"


def _jsonl(value: Any, section: Section) -> str:
    section.put_folder("dataset.folder", str(value).replace("\\", "/").rpartition("/")[0] or ".")
    section.put("dataset.captions", "jsonl")
    return "its folder; paths in it must be those of files there"


def _refuse(value: Any, section: Section) -> None:
    section.block(f"{section.prefix}{section.key} names videos; {VIDEO}.")
    raise NotHere(VIDEO)


MODEL = (
    special("model_version", "model.flavour, model.variant", "", values_of.version, default="dev"),
    special("dit", "model.transformer", "", model_place("model.transformer")),
    special("vae", "model.vae", "", model_place("model.vae")),
    special("text_encoder", "model.text_encoder", "", model_place("model.text_encoder")),
    special("fp8_base", "model.precision", "", values_of.fp8),
    special("fp8_scaled", "model.precision", "see fp8_base", nothing),
    special("fp8_text_encoder", "model.text_encoder_precision", "",
        switched("model.text_encoder_precision", "fp8 (scaled)", "as in file")),
    special("vae_dtype", "latents.vae_precision", "", _precision("latents.vae_precision"), default="float32"),
    *each(needless, "mixed_precision", "training computes in bf16 where the card has it"),
    *each(needless, "sdpa flash_attn sage_attn xformers flash3 split_attn", "ComfyUI chooses attention"),
    *each(needless,
        "compile compile_backend compile_mode compile_dynamic compile_fullgraph compile_cache_size_limit "
        "dynamo_backend dynamo_mode dynamo_fullgraph dynamo_dynamic",
        COMPILED),
    *each(needless,
        "cuda_allow_tf32 cuda_cudnn_benchmark disable_numpy_memmap device ddp_timeout ddp_gradient_as_bucket_view "
        "ddp_static_graph img_in_txt_in_offloading dit_dtype", SPEED),
)  # fmt: skip
NETWORK = (
    special("network_module", "training.adapter.kind", "", values_of.network),
    used("network_dim", "training.rank", whole, default=4),
    turned("network_alpha", "training.alpha", number, "1 where it is not set: the LoRA's scale is 1 / rank", default=1),
    used("network_dropout", "training.adapter.dropout", number),
    special("network_args", "training.adapter", "", values_of.network_args),
    used("network_weights", "training.adapter.start_from", text),
    missing("dim_from_weights", "set training.rank to that of the file"),
    missing("scale_weight_norms", "not here"),
    missing("base_weights", "wire the LoRA in with LoRA Apply"),
    missing("base_weights_multiplier", "wire the LoRA in with LoRA Apply"),
)  # fmt: skip
OPTIMISATION = (
    special("max_train_steps", "training.steps", "", _steps, default=1600),
    special("max_train_epochs", "training.epochs", "", _epochs),
    used("learning_rate", "training.learning_rate", number, default=2e-06),
    special("optimizer_type", "training.optimizer.optimizer", "by its last name", values_of.optimizer),
    special("optimizer_args", "training.optimizer", "", values_of.optimizer_args),
    turned("lr_scheduler", "training.optimizer.schedule",
        oneof(values_of.SCHEDULES, "this schedule is not here; it stays constant"), ""),
    missing("lr_scheduler_type", "no class is imported because a file names it"),
    missing("lr_scheduler_args", "not here"),
    missing("lr_scheduler_timescale", "not here"),
    missing("lr_decay_steps", "the schedules fall until the end"),
    special("lr_warmup_steps", "training.optimizer.warmup", "", values_of.warmup),
    used("lr_scheduler_num_cycles", "training.optimizer.cycles", whole),
    used("lr_scheduler_power", "training.optimizer.power", number),
    used("lr_scheduler_min_lr_ratio", "training.optimizer.end", number),
    used("max_grad_norm", "training.optimizer.max_grad_norm", number),
    used("gradient_accumulation_steps", "training.accumulate", whole),
    used("seed", "training.seed", whole),
    special("timestep_sampling", "training.timesteps", "", values_of.times, default="sigma"),
    special("discrete_flow_shift", "training.timesteps.shift_factor", "see timestep_sampling", nothing),
    special("sigmoid_scale", "training.timesteps.sigmoid_scale", "see timestep_sampling", nothing),
    special("logit_mean", "training.timesteps.sigmoid_mean", "see timestep_sampling", nothing),
    special("logit_std", "training.timesteps.sigmoid_std", "see timestep_sampling", nothing),
    special("mode_scale", "training.timesteps.mode_scale", "see timestep_sampling", nothing),
    special("weighting_scheme", "training.timesteps.weighting", "", values_of.weighting),
    turned("min_timestep", "training.timesteps.min", share(1000), "of 1000"),
    turned("max_timestep", "training.timesteps.max", share(1000), "of 1000"),
    used("num_timestep_buckets", "training.timesteps.strata", whole),
    always("preserve_distribution_shape", "limits keep the proportions of the other times"),
    needless("show_timesteps", "the node Timesteps shows a plot"),
    needless("guidance_scale", "guidance is 1 in its FLUX.2 training, as here"),
)  # fmt: skip
MEMORY = (
    used("gradient_checkpointing", "training.checkpointing", flag, default=False),
    special("gradient_checkpointing_cpu_offload", "training.memory.offload_activations", "",
        switched("training.memory.offload_activations", "on", "auto")),
    special("blocks_to_swap", "training.memory.blocks_to_swap", "", values_of.swapped),
    always("use_pinned_memory_for_block_swap", "streamed weights are pinned as far as memory.pinned_memory says"),
    always("block_swap_h2d_only", "weights are only read; nothing is copied back"),
    always("block_swap_ring_size", "the planner chooses"),
    *each(needless, "max_data_loader_n_workers persistent_data_loader_workers num_workers", "caches are mapped"),
)  # fmt: skip
FILES = (
    turned("output_name", "training.name", file_name, ""),
    needless("output_dir", "files go to ComfyUI's folders"),
    special("save_precision", "training.save.precision", "", _precision("training.save.precision"), default="float"),
    used("save_every_n_steps", "training.checkpoints.lora_every", whole),
    turned("save_every_n_epochs", "training.checkpoints.every_epochs", whole,
        "checkpoints, as LoRA files on the way count steps here: python -m flux2_train convert makes one of each"),
    special("save_last_n_steps", "training.checkpoints.lora_keep", "",
        values_of.kept("save_every_n_steps", "training.checkpoints.lora_keep")),
    special("save_last_n_epochs", "training.checkpoints.keep", "",
        values_of.kept("save_every_n_epochs", "training.checkpoints.keep")),
    *each(needless, "save_last_n_steps_state save_last_n_epochs_state", "a checkpoint is state and weights"),
    *each(always, "save_state save_state_on_train_end", "every checkpoint holds the whole state"),
    needless("resume", "an interrupted run goes on by itself; python -m flux2_train resume"),
    special("log_with", "training.logs", "", logs),
    *each(needless, "logging_dir log_prefix log_tracker_name log_tracker_config wandb_run_name log_config",
        "logs lie in the run's folder, under training.name"),
    needless("wandb_api_key", "log in with wandb itself; the key is not kept"),
    *each(needless,
        "no_metadata training_comment metadata_title metadata_author metadata_description metadata_license "
        "metadata_tags metadata_reso metadata_arch", "the LoRA's header holds the settings"),
    *each(needless,
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
        "huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload", NO_UPLOAD),
    special("sample_prompts", "previews.prompts", "", values_of.sample_prompts),
    used("sample_every_n_steps", "previews.every", whole),
    missing("sample_every_n_epochs", "previews count steps; set previews.every"),
    used("sample_at_first", "previews.at_start", flag, default=False),
    special("dataset_config", "dataset", "its file is read if it lies beside this one, or from --dataset", nothing),
    needless("config_file", "give that file itself"),
)  # fmt: skip
CACHING = (
    special("model_version", "model.flavour", "", nothing),
    *each(needless, "dataset_config vae text_encoder fp8_text_encoder", "see the training command"),
    special("vae_dtype", "latents.vae_precision", "", _precision("latents.vae_precision")),
    *each(always, "skip_existing keep_cache", "what is cached and true is not made again"),
    *each(needless,
        "num_workers device disable_cudnn_backend debug_mode console_width console_back console_num_images "
        "text_encoder1 text_encoder2 text_encoder_dtype fp8_llm", SPEED),
    special("vae_tiling", "latents.tile", "", switched("latents.tile", 1024, 0)),
    *each(needless, "vae_chunk_size vae_spatial_tile_sample_min_size", "see latents.tile"),
)  # fmt: skip
DATA = (
    special("image_directory", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("image_jsonl_file", "dataset.folder, captions", "", _jsonl),
    needless("cache_directory", "caches lie where embeds.store and latents.store say"),
    special("resolution", "dataset.resolution", "", resolution, default=[960, 544]),
    special("enable_bucket", "dataset.crop_options.aspects", "", buckets),
    special("bucket_no_upscale", "dataset.crop_options.upscale", "the opposite", no_upscale),
    special("caption_extension", "dataset.captions", "", ending),
    special("batch_size", "training.batch", "", batch, default=1),
    used("num_repeats", "dataset.repeats", whole),
    special("control_directory", "dataset.references", "", _control),
    special("control_resolution", "dataset.reference_options.resolution", "its area",
        lambda v, s: s.put("dataset.reference_options.resolution", area_side(*sides(v)))),
    missing("no_resize_control", "set reference_options.resolution"),
    missing("multiple_target", "one picture per item"),
    *each(special, "video_directory video_jsonl_file", "", "", _refuse),
    *each(needless,
        "target_frames frame_extraction frame_stride frame_sample max_frames source_fps fp_latent_window_size "
        "flux_kontext_no_resize_control qwen_image_edit_no_resize_control qwen_image_edit_control_resolution",
        "for other models"),
    needless("debug_dataset", "the node shows a contact sheet"),
)  # fmt: skip
OPTIONS = (*MODEL, *NETWORK, *OPTIMISATION, *MEMORY, *FILES)
TABLES = {"model": MODEL, "network": NETWORK, "optimisation": OPTIMISATION, "memory": MEMORY,
          "files and previews": FILES, "cache commands": CACHING, "data set file": DATA}  # fmt: skip


def recognise(values: Any) -> bool:
    """Whether this is a command line of its FLUX.2 scripts, their options as TOML, or its data set file."""
    if isinstance(values, str):
        return any(script in values for script in SCRIPTS)
    if not isinstance(values, dict):
        return False
    sets = values.get("datasets")
    names = _options(values)
    return (isinstance(sets, list) and any(isinstance(e, Mapping) and _is_data(e) for e in sets)) or (
        "network_module" in names and "dit" in names
    )


def _is_data(values: Mapping[str, Any]) -> bool:
    return bool({"image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file"} & values.keys())


def translate(values: Any, draft: Draft) -> list[Row]:
    """A row for every option and key; the job goes into the draft."""
    if isinstance(values, str):
        return [row for command in commands(values, SCRIPTS) for row in _command(command, draft)]
    if "datasets" in values:
        return _data(values, draft, "")
    return _named(_train(_options(values), draft, ""), values)


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a TOML file, whose sections mean nothing."""
    return {_option(key, values): value for key, value in reading.leaves(values).items()}


def _option(key: str, values: Mapping[str, Any]) -> str:
    section, dot, option = key.partition(".")
    return option if dot and isinstance(values.get(section), dict) else key


def _named(rows: list[Row], values: Mapping[str, Any]) -> list[Row]:
    """The rows with the whole keys that the file has."""
    whole_keys = {_option(key, values): key for key in reading.leaves(values)}
    return [replace(row, key=whole_keys.get(row.key, row.key)) for row in rows]


def _command(command: Any, draft: Draft) -> list[Row]:
    launcher = tuple(needless(key, "of the program that starts it") for key in command.launcher)
    rows = apply(launcher, draft.section(command.launcher, "accelerate --"))
    if command.script.startswith(TRAIN):
        return rows + _train(command.options, draft, f"{TRAIN} --")
    place = "latents.batch" if command.script.startswith(LATENTS) else "embeds.batch"
    rules: tuple[Rule, ...] = (used("batch_size", place, whole), *CACHING)
    return rows + apply(rules, draft.section(command.options, f"{command.script} --"), defaults=False)


def _train(options: Mapping[str, Any], draft: Draft, prefix: str) -> list[Row]:
    section = draft.section(options, prefix)
    rows = apply(OPTIONS, section)
    path = draft.data or reading.beside(draft.path, section.get("dataset_config"))
    draft.data = None
    if path is not None:
        rows += _data(reading.read(path), draft, f"{path.name}: ")
    return rows


def _data(values: Any, draft: Draft, prefix: str) -> list[Row]:
    if not isinstance(values, dict) or not isinstance(values.get("datasets"), list):
        draft.blockers.append(f"{prefix or draft.path.name} holds no data sets.")
        return unknown(reading.leaves(values), prefix)
    levels = Levels(DATA, draft)
    general = (f"{prefix}general.", flat(values.get("general")))
    for number_, each_set in enumerate(values["datasets"]):
        levels.add(general, (f"{prefix}datasets[{number_}].", flat(each_set)))
    rest = {key: each_ for key, each_ in values.items() if key not in ("general", "datasets")}
    return levels.finished() + unknown(flat(rest), prefix)
