"""diffusers: the command lines of its DreamBooth LoRA scripts for FLUX.2."""

from __future__ import annotations

from typing import Any

from .commands import Command, commands
from .common import NO_UPLOAD, add_prompts, counted, flavour_of, last_name, logs, prompts, switched
from .convert import betas, file_name, flag, lines, number, numbers, text, whole
from .draft import Draft, NotHere, Section
from .layers import patterns
from .report import Row
from .rules import Differs, always, apply, each, missing, needless, special, turned, used

NAME = "diffusers (train_dreambooth_lora_flux2)"
SCRIPTS = ("train_dreambooth_lora_flux2",)
LAYERS = "to_k, to_q, to_v, to_out.0, to_qkv_mlp_proj, attn.to_out"  # what the scripts train by default
FUSED = "q, k and v share one matrix A here"
PLACE = "training.timesteps"
steps, epochs = counted("max_train_steps", "num_train_epochs")


def nothing(value: Any, section: Section) -> None:
    """The option is read together with another."""


def _model(value: Any, section: Section) -> str | None:
    section.put("model.flavour", flavour_of(value))
    if "klein" in str(value).lower():
        section.put("model.variant", "base" if "base" in str(value).lower() else "distilled")
    return "'auto' finds the official files in ComfyUI's folders"


def _fp8(value: Any, section: Section) -> str | None:
    if not flag(value):
        return "off"
    section.put("model.precision", "fp8 (scaled)")
    return Differs("stored in fp8; there the weights stay and the products are computed in fp8")


def _layers(value: Any, section: Section) -> str:
    section.put("training.adapter.include", patterns(str(value).split(",")))
    return FUSED


def _optimizer(value: Any, section: Section) -> None:
    name = str(value).lower()
    if name not in ("adamw", "prodigy"):
        raise NotHere("its scripts know adamw and prodigy")
    small = name == "adamw" and flag(section.get("use_8bit_adam", False))
    section.put("training.optimizer.optimizer", "adamw8bit" if small else name)


def _betas(value: Any, section: Section) -> None:
    section.put("training.optimizer.betas", betas(section.get("adam_beta1", 0.9), section.get("adam_beta2", 0.999)))


def _schedule(value: Any, section: Section) -> str | None:
    names = {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine with restarts"}
    section.put("training.optimizer.schedule", names.get(str(value), str(value)))
    return None


def _warmup(value: Any, section: Section) -> str | None:
    if str(section.get("lr_scheduler", "constant")) == "constant":
        return "its constant schedule has none"
    section.put("training.optimizer.warmup", number(value))
    return None


def _times(value: Any, section: Section) -> str | None:
    scheme = str(value)
    section.put(f"{PLACE}.shift", "none")
    section.put(f"{PLACE}.distribution", {"logit_normal": "sigmoid", "mode": "mode"}.get(scheme, "uniform"))
    if scheme == "logit_normal":
        section.put(f"{PLACE}.sigmoid_mean", number(section.get("logit_mean", 0.0)))
        section.put(f"{PLACE}.sigmoid_std", number(section.get("logit_std", 1.0)))
    if scheme == "mode":
        section.put(f"{PLACE}.mode_scale", number(section.get("mode_scale", 1.29)))
    if scheme in ("sigma_sqrt", "cosmap"):
        section.put(f"{PLACE}.weighting", scheme)
    return "times are not shifted there"


def _guidance(value: Any, section: Section) -> str | None:
    section.put("training.guidance.guidance", number(value))
    return "klein has no such input"


def _crop(value: Any, section: Section) -> str | None:
    section.put("dataset.crop_options.crop_style", "center" if flag(value) else "random")
    if section.get("aspect_ratio_buckets") is None and not flag(section.get("use_aspect_ratio_buckets", False)):
        section.put("dataset.crop_options.crop_aspect", "square")
        return "square without aspect_ratio_buckets"
    return None


def _buckets(value: Any, section: Section) -> str:
    shapes = [numbers(pair) for pair in str(value).split(";") if pair.strip()]
    if any(len(shape) != 2 or not all(shape) for shape in shapes):
        raise NotHere("it is no list such as 672,1568;688,1504")
    section.put("dataset.crop_options.aspects", [width / height for height, width in shapes])
    section.put("dataset.crop_options.crop_aspect", "closest")
    return "height and width become shapes; sizes follow from the resolution"


def _class_folder(value: Any, section: Section) -> str | None:
    if not flag(section.get("with_prior_preservation", False)):
        return "with_prior_preservation is off"
    draft = section.draft
    draft.section({}, "", draft.new_dataset()).put_folder("dataset.folder", text(value))
    draft.datasets[-1] |= {
        "captions": "one prompt", "prompt": text(section.get("class_prompt", "")), "is_reg": True,
        "loss_weight": number(section.get("prior_loss_weight", 1.0)), "trigger": "",
    }  # fmt: skip
    return "a data set of regularisation images, with class_prompt as their caption"


def _prompt(value: Any, section: Section) -> None:
    images = lines(section.get("validation_image"))
    add_prompts(section, [{"text": text(value), "references": images}] if images else lines(value))


def _hub(value: Any, section: Section) -> str:
    section.draft.unknown.append(f"the pictures come from {value}: download them, and set dataset.folder")
    section.put("dataset.folder", last_name(value))
    raise NotHere("pictures must lie in a folder; download that data set")


OPTIONS = (
    special("pretrained_model_name_or_path", "model.flavour", "", _model),
    *each(needless, "revision variant", "model files are chosen by name"),
    special("do_fp8_training", "model.precision", "", _fp8),
    missing("bnb_quantization_config_path", "choose model.precision: nvfp4 for nf4, int8 for 8 bits"),
    special("dataset_name", "dataset.folder", "", _hub),
    *each(needless, "dataset_config_name cache_dir image_column", "pictures lie in a folder"),
    missing("caption_column", "write captions as text files, or as a .jsonl file with captions = jsonl"),
    missing("cond_image_column", "name the folder of references as dataset.references"),
    special("instance_data_dir", "dataset.folder", "", lambda v, s: s.put_folder("dataset.folder", text(v))),
    special("instance_prompt", "dataset.captions, dataset.prompt", "one caption for all",
        lambda v, s: (s.put("dataset.captions", "one prompt"), s.put("dataset.prompt", text(v)), None)[2]),
    turned("repeats", "dataset.repeats", whole, "1 is once"),
    special("class_data_dir", "dataset.is_reg", "", _class_folder),
    special("class_prompt", "dataset.prompt", "see class_data_dir", nothing),
    special("with_prior_preservation", "dataset.is_reg", "see class_data_dir", nothing),
    special("prior_loss_weight", "dataset.loss_weight", "see class_data_dir", nothing),
    missing("num_class_images", "pictures of the class are not painted; put some into that folder",
        off=(None, "100", 100)),
    *each(needless, "prior_generation_precision sample_batch_size", "pictures of the class are not painted"),
    used("resolution", "dataset.resolution", whole, default=512),
    special("center_crop", "dataset.crop_options.crop_style", "", _crop, default=False),
    special("random_flip", "dataset.crop_options.flip_x", "both ways in every epoch; there one of them by chance",
        switched("dataset.crop_options.flip_x", True, False)),
    special("aspect_ratio_buckets", "dataset.crop_options.aspects", "", _buckets),
    special("use_aspect_ratio_buckets", "dataset.crop_options.crop_aspect", "the closest bucket", nothing),
    used("caption_dropout", "dataset.caption_options.dropout", number),
    needless("max_sequence_length", "FLUX.2 reads 512 tokens"),
    needless("text_encoder_out_layers",
        "embeds are those of ComfyUI; the klein script's own default does not fit klein"),
    used("rank", "training.rank", whole, default=4),
    used("lora_alpha", "training.alpha", number, default=4),
    used("lora_dropout", "training.adapter.dropout", number),
    special("lora_layers", "training.adapter.include", "", _layers, default=LAYERS),
    special("max_train_steps", "training.steps", "", steps),
    special("num_train_epochs", "training.epochs", "", epochs, default=1),
    used("train_batch_size", "training.batch", whole, default=4),
    used("gradient_accumulation_steps", "training.accumulate", whole),
    used("gradient_checkpointing", "training.checkpointing", flag, default=False),
    used("learning_rate", "training.learning_rate", number, default=0.0001),
    missing("scale_lr", "the learning rate is used as it is"),
    needless("text_encoder_lr", "text encoders are not trained"),
    special("lr_scheduler", "training.optimizer.schedule", "", _schedule),
    special("lr_warmup_steps", "training.optimizer.warmup", "", _warmup, default=500),
    used("lr_num_cycles", "training.optimizer.cycles", whole),
    used("lr_power", "training.optimizer.power", number),
    special("optimizer", "training.optimizer.optimizer", "", _optimizer, default="AdamW"),
    special("use_8bit_adam", "training.optimizer.optimizer", "see optimizer", nothing),
    *each(special, "adam_beta1 adam_beta2", "training.optimizer.betas", "", _betas),
    used("adam_weight_decay", "training.optimizer.weight_decay", number, default=0.0001),
    needless("adam_weight_decay_text_encoder", "text encoders are not trained"),
    used("adam_epsilon", "training.optimizer.eps", number),
    *each(missing, "prodigy_beta3 prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup",
        "prodigy has its usual options", off=(None, True, "True")),
    used("max_grad_norm", "training.optimizer.max_grad_norm", number),
    special("weighting_scheme", "training.timesteps", "", _times, default="none"),
    *each(special, "logit_mean logit_std mode_scale", "training.timesteps", "see weighting_scheme", nothing),
    special("guidance_scale", "training.guidance.guidance", "", _guidance, default=3.5),
    used("seed", "training.seed", whole),
    turned("output_dir", "training.name", lambda v: file_name(last_name(v)), "its last part"),
    used("checkpointing_steps", "training.checkpoints.every_steps", whole, default=500),
    used("checkpoints_total_limit", "training.checkpoints.keep", whole),
    needless("resume_from_checkpoint", "an interrupted run goes on by itself; python -m flux2_train resume"),
    special("report_to", "training.logs", "", logs, default="tensorboard"),
    needless("logging_dir", "logs lie in the run's folder"),
    special("upcast_before_saving", "training.save.precision", "", switched("training.save.precision", "fp32", "bf16")),
    special("validation_prompt", "previews.prompts", "", _prompt),
    special("validation_image", "previews.prompts", "the prompt's reference", nothing),
    special("final_validation_prompt", "previews.prompts", "", prompts),
    missing("validation_epochs", "previews count steps; set previews.every"),
    missing("num_validation_images", "one picture for each prompt", off=(None, 1, "1")),
    needless("skip_final_inference", "the end is always painted"),
    always("cache_latents", "latents and embeds are always cached"),
    always("offload", "models leave memory when they are not needed"),
    needless("remote_text_encoder", "text is encoded here"),
    *each(needless,
        "allow_tf32 mixed_precision local_rank dataloader_num_workers enable_npu_flash_attention fsdp_text_encoder",
        "how it computes, not what"),
    *each(needless, "push_to_hub hub_token hub_model_id", NO_UPLOAD),
)  # fmt: skip
TABLES = {"options": OPTIONS}


def recognise(values: Any) -> bool:
    """Whether this is a text with a command line of those scripts."""
    return isinstance(values, str) and any(script in values for script in SCRIPTS)


def translate(values: str, draft: Draft) -> list[Row]:
    """A row for every option of the first such command."""
    found = commands(values, SCRIPTS)
    if not found:
        draft.blockers.append("The text names such a script, but holds no command that starts it.")
        return []
    if len(found) > 1:
        draft.notes.append(f"The file holds {len(found)} commands; the first is read. Put each into a file of its own.")
    return _command(found[0], draft)


def _command(command: Command, draft: Draft) -> list[Row]:
    launcher = tuple(needless(key, "of the program that starts it") for key in command.launcher)
    rows = apply(launcher, draft.section(command.launcher, "accelerate --"))
    section = draft.section(command.options, f"{command.script} --", draft.new_dataset())
    rows += apply(OPTIONS, section)
    if "img2img" in command.script:
        draft.notes.append("This script trains edits: name the folder of references as dataset.references.")
    if "folder" not in draft.datasets[0]:
        draft.common, draft.datasets = draft.datasets[0], draft.datasets[1:]
    return rows
