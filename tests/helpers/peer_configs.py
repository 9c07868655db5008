"""The examples that other trainers ship, as facts: their keys and values, written down here as plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIMPLETUNER: dict[str, Any] = {
    "base_model_precision": "int8-sdnq", "checkpoint_step_interval": 10, "controlnet": False,
    "data_backend_config": "config/examples/multidatabackend-small-dreambooth-512px.json",
    "disable_bucket_pruning": True, "flow_schedule_shift": 3, "fuse_qkv_projections": False,
    "grad_clip_method": "value", "gradient_checkpointing": True, "hub_model_id": "simpletuner-example-flux2-peft-lora",
    "learning_rate": 1e-4, "lora_alpha": 16, "lora_rank": 16, "lora_type": "standard", "lr_scheduler": "constant",
    "max_train_steps": 100, "mixed_precision": "bf16", "model_family": "flux2", "model_type": "lora",
    "num_eval_images": 25, "num_train_epochs": 0, "optimizer": "adamw_bf16",
    "output_dir": "output/examples/flux2.peft-lora+TREAD", "push_checkpoints_to_hub": False, "push_to_hub": False,
    "quantize_via": "cpu", "report_to": "none", "sdnq_compile_mode": "compile", "sdnq_group_size": -1,
    "sdnq_hadamard_group_size": 256, "sdnq_use_hadamard": True, "sdnq_use_quantized_matmul": True, "seed": 42,
    "tracker_project_name": "lora-training", "tracker_run_name": "example-training-run", "train_batch_size": 1,
    "tread_config": {"routes": [{"end_layer_idx": -2, "selection_ratio": 0.5, "start_layer_idx": 2}]},
    "use_ema": False, "vae_batch_size": 1, "validation_disable_unconditional": True, "validation_guidance": 4.0,
    "validation_guidance_rescale": 0.0, "validation_negative_prompt": "ugly, cropped, blurry",
    "validation_num_inference_steps": 16, "validation_prompt": "🟫 is holding a sign",
    "validation_prompt_library": False, "validation_resolution": "1024x1024", "validation_seed": 42,
    "validation_steps": 50,
}  # fmt: skip
SIMPLETUNER_DATA: list[dict[str, Any]] = [
    {"id": "my-dataset", "type": "local", "crop": True, "crop_aspect": "square", "crop_style": "center",
     "resolution": 1024, "minimum_image_size": 1024, "maximum_image_size": 1024, "resolution_type": "pixel_area",
     "cache_dir_vae": "cache/vae/flux2/my-dataset", "instance_data_dir": "/data/my-dataset",
     "caption_strategy": "textfile", "metadata_backend": "discovery", "repeats": 10},
    {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True,
     "cache_dir": "cache/text/flux2", "write_batch_size": 64},
]  # fmt: skip
SIMPLETUNER_EDITS: list[dict[str, Any]] = [
    {"id": "flux2-edits", "type": "local", "instance_data_dir": "/data/edits", "caption_strategy": "textfile",
     "resolution": 1024, "conditioning_data": ["flux2-references"], "cache_dir_vae": "cache/vae/flux2/edits"},
    {"id": "flux2-references", "type": "local", "dataset_type": "conditioning", "instance_data_dir": "/data/references",
     "conditioning_type": "reference_strict", "resolution": 1024, "cache_dir_vae": "cache/vae/flux2/references"},
]  # fmt: skip
LYCORIS: dict[str, Any] = {
    "bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_dim": 10000,
    "linear_alpha": 1, "factor": 4,
    "apply_preset": {
        "target_module": ["Flux2Attention", "Flux2FeedForward", "Flux2ParallelSelfAttention"],
        "module_algo_map": {"Flux2FeedForward": {"factor": 4}, "Flux2Attention": {"factor": 2},
                            "Flux2ParallelSelfAttention": {"factor": 2}},
    },
}  # fmt: skip
SIMPLETUNER_LYCORIS: dict[str, Any] = {
    "base_model_precision": "int8-torchao", "checkpoint_step_interval": 50, "disable_bucket_pruning": True,
    "data_backend_config": "config/examples/multidatabackend-controlnet-512px.json", "flow_schedule_shift": 3,
    "grad_clip_method": "value", "gradient_checkpointing": True, "learning_rate": 1e-4, "lora_alpha": 128,
    "lora_rank": 128, "lora_type": "lycoris", "lr_scheduler": "constant",
    "lycoris_config": "config/examples/flux2-klein-9b-i2i.lycoris-lokr/lycoris_config.json", "max_train_steps": 100,
    "model_family": "flux2", "model_flavour": "klein-9b", "model_type": "lora", "num_train_epochs": 0,
    "optimizer": "adamw_bf16", "output_dir": "output/examples/flux2-klein-9b-i2i.lycoris-lokr", "train_batch_size": 3,
    "quantize_via": "cpu", "report_to": "none", "seed": 42, "use_ema": False, "vae_batch_size": 1,
    "validation_guidance": 5.0, "validation_resolution": "1024x1024", "validation_steps": 50,
}  # fmt: skip
AI_TOOLKIT_PROCESS: dict[str, Any] = {
    "type": "diffusion_trainer", "training_folder": "output", "sqlite_db_path": "./aitk_db.db", "device": "cuda",
    "trigger_word": None, "performance_log_every": 10,
    "network": {"type": "lora", "linear": 32, "linear_alpha": 32, "conv": 16, "conv_alpha": 16, "lokr_full_rank": True,
                "lokr_factor": -1, "network_kwargs": {"ignore_if_contains": []}},
    "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4, "save_format": "diffusers",
             "push_to_hub": False},
    "datasets": [{
        "folder_path": "/path/to/images/folder", "mask_path": None, "mask_min_value": 0.1, "default_caption": "",
        "caption_ext": "txt", "caption_dropout_rate": 0.05, "cache_latents_to_disk": False, "is_reg": False,
        "network_weight": 1, "resolution": [512, 768, 1024], "controls": [], "shrink_video_to_frames": True,
        "num_frames": 1, "flip_x": False, "flip_y": False, "num_repeats": 1,
    }],
    "train": {
        "batch_size": 1, "bypass_guidance_embedding": True, "steps": 3000, "gradient_accumulation": 1,
        "train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True, "noise_scheduler": "flowmatch",
        "optimizer": "adamw8bit", "timestep_type": "weighted", "content_or_style": "balanced",
        "optimizer_params": {"weight_decay": 1e-4}, "unload_text_encoder": False, "cache_text_embeddings": False,
        "lr": 0.0001, "ema_config": {"use_ema": False, "ema_decay": 0.99}, "skip_first_sample": False,
        "force_first_sample": False, "disable_sampling": False, "dtype": "bf16", "diff_output_preservation": False,
        "diff_output_preservation_multiplier": 1.0, "diff_output_preservation_class": "person",
        "switch_boundary_every": 1, "loss_type": "mse",
    },
    "logging": {"log_every": 1, "use_ui_logger": True},
    "model": {"name_or_path": "black-forest-labs/FLUX.2-klein-base-9B", "quantize": True, "qtype": "qfloat8",
              "quantize_te": True, "qtype_te": "qfloat8", "arch": "flux2_klein_9b", "low_vram": True,
              "model_kwargs": {"match_target_res": False}, "compile": False},
    "sample": {"sampler": "flowmatch", "sample_every": 250, "sample_start_step": 0, "width": 1024, "height": 1024,
               "samples": [{"prompt": "a woman holding a coffee cup"}, {"prompt": "a bear building a log cabin"}],
               "neg": "", "seed": 42, "walk_seed": True, "guidance_scale": 4, "sample_steps": 30, "num_frames": 1,
               "fps": 1},
}  # fmt: skip
AI_TOOLKIT: dict[str, Any] = {
    "job": "extension", "config": {"name": "my_first_lora_v1", "process": [AI_TOOLKIT_PROCESS]},
    "meta": {"name": "[name]", "version": "1.0"},
}  # fmt: skip
MUSUBI = r"""
python src/musubi_tuner/flux_2_cache_latents.py \
    --dataset_config path/to/toml \
    --vae path/to/ae_model \
    --model_version dev
python src/musubi_tuner/flux_2_cache_text_encoder_outputs.py \
    --dataset_config path/to/toml \
    --text_encoder path/to/text_encoder \
    --batch_size 16 \
    --model_version dev
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/flux_2_train_network.py \
    --model_version dev --dit path/to/dit_model --vae path/to/ae_model --text_encoder path/to/text_encoder \
    --dataset_config path/to/toml --sdpa --mixed_precision bf16 \
    --timestep_sampling flux2_shift --weighting_scheme none \
    --optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing \
    --max_data_loader_n_workers 2 --persistent_data_loader_workers \
    --network_module networks.lora_flux_2 --network_dim 32 \
    --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \
    --output_dir path/to/output_dir --output_name name-of-lora
"""
MUSUBI_DATA = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "/path/to/image_dir"
cache_directory = "/path/to/cache_directory"
control_directory = "/path/to/control_dir"
num_repeats = 2
"""
ONETRAINER: dict[str, Any] = {
    "base_model_name": "black-forest-labs/FLUX.2-klein-base-9B", "batch_size": 2, "learning_rate": 3e-5,
    "model_type": "FLUX_2", "resolution": "512", "output_model_format": "DIFFUSERS_LORA", "compile": True,
    "transformer": {"train": True, "weight_dtype": "INT_W8A8", "offload_fraction": 0.7},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8", "offload_fraction": 0.7}, "training_method": "LORA",
    "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16",
    "layer_filter": "transformer_block", "layer_filter_preset": "blocks",
    "quantization": {"layer_filter": "transformer_block", "layer_filter_preset": "blocks"},
    "timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True, "dataloader_threads": 1,
}  # fmt: skip
ONETRAINER_FINE_TUNE: dict[str, Any] = {
    "base_model_name": "black-forest-labs/FLUX.2-klein-base-9B", "batch_size": 2, "learning_rate": 1e-6,
    "model_type": "FLUX_2", "resolution": "512", "output_model_format": "ORIGINAL_TRANSFORMER", "compile": True,
    "transformer": {"train": True, "weight_dtype": "BFLOAT_16", "offload_fraction": 0.6},
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_8"}, "training_method": "FINE_TUNE",
    "vae": {"weight_dtype": "FLOAT_32"}, "train_dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16",
    "timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True,
    "optimizer": {"optimizer": "ADAFACTOR"},
    "optimizer_defaults": {"ADAFACTOR": {"optimizer": "ADAFACTOR", "fused_back_pass": True, "beta1": None,
                                         "clip_threshold": 1.0, "decay_rate": -0.8, "eps": 1e-30, "eps2": 0.001}},
}  # fmt: skip
DIFFUSERS = r"""
export MODEL_NAME="black-forest-labs/FLUX.2-klein-base-9B"
export INSTANCE_DIR="/data/dog"
export OUTPUT_DIR="trained-flux2-klein-9b"

accelerate launch train_dreambooth_lora_flux2_klein.py \
  --pretrained_model_name_or_path=$MODEL_NAME  \
  --instance_data_dir=$INSTANCE_DIR \
  --output_dir=$OUTPUT_DIR \
  --do_fp8_training --gradient_checkpointing --cache_latents \
  --instance_prompt="a photo of sks dog" \
  --resolution=1024 --train_batch_size=1 --guidance_scale=1 --use_8bit_adam \
  --gradient_accumulation_steps=4 --optimizer="adamW" --learning_rate=1e-4 --report_to="wandb" \
  --lr_scheduler="constant" --lr_warmup_steps=100 --max_train_steps=500 \
  --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=25 --seed="0" --push_to_hub
"""
KOHYA = r"""
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'C:\hoge'
  class_tokens = 'hoge girl'

  [[datasets.subsets]]
  image_dir = 'C:\fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'C:\reg'
  class_tokens = 'human'
  keep_tokens = 1

[[datasets]]
resolution = [768, 768]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'C:\piyo'
  metadata_file = 'C:\piyo\piyo_md.json'
"""


def write(path: Path, content: Any) -> Path:
    """Write an example as a file: a text as it is, plain values as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
