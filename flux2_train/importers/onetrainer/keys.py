"""OneTrainer's keys: what becomes of each."""

from __future__ import annotations

from ..common import COMPILED, family, flavour_of, model_place, side, switched
from ..convert import flag, number, oneof, text, whole
from ..rules import always, each, missing, needless, refused, special, turned, used
from . import values as values_of
from .values import nothing

OTHER = "for other models"
OWN = "its own window and folders"
ADAPTERS = "an adapter of a kind that is not here"
MAGIC = "an option of optimizers that are not here"
MODEL = (
    special("model_type", "FLUX.2", "", family(("flux_2",), "model_type")),
    turned("base_model_name", "model.flavour", flavour_of, "'auto' finds the official files in ComfyUI's folders"),
    refused("training_method", "this pack trains LoRAs, not whole models or embeddings", lambda v: v != "LORA"),
    special("transformer.model_name", "model.transformer", "", model_place("model.transformer")),
    special("vae.model_name", "model.vae", "", model_place("model.vae")),
    special("text_encoder.model_name", "model.text_encoder", "", model_place("model.text_encoder")),
    special("transformer.weight_dtype", "model.precision", "", values_of.precision("model.precision")),
    special("text_encoder.weight_dtype", "model.text_encoder_precision", "",
        values_of.precision("model.text_encoder_precision")),
    turned("vae.weight_dtype", "latents.vae_precision",
        oneof({"FLOAT_32": "fp32", "BFLOAT_16": "bf16"}, "fp32 or bf16"), ""),
    special("transformer.offload_fraction", "training.memory.offload_percent", "as per cent", values_of.offloaded),
    special("text_encoder.offload_fraction", "embeds.offload", "",
        lambda v, s: s.put("embeds.offload", "all" if number(v) else "auto")),
    refused("transformer.train", "the transformer is what learns here", lambda v: not flag(v)),
    refused("text_encoder.train", "text encoders are not trained here", flag),
    used("transformer.guidance_scale", "training.guidance.guidance", number),
    used("transformer.gradient_checkpointing", "training.checkpointing", flag),
    special("transformer.activation_offloading", "training.memory.offload_activations", "",
        switched("training.memory.offload_activations", "on", "auto")),
    turned("text_encoder.dropout_probability", "dataset.caption_options.dropout", number, "captions that are left out"),
    *each(missing, "transformer.stop_training_after transformer.stop_training_after_unit transformer.learning_rate",
        "one learning rate until the end", off=(None, "NEVER")),
    *each(needless,
        "transformer.include transformer.dropout_probability transformer.train_embedding transformer.attention_mask",
        OTHER),
    *each(needless,
        "unet prior unconditional_transformer text_encoder_2 text_encoder_3 text_encoder_4 effnet_encoder decoder "
        "decoder_text_encoder decoder_vqgan", OTHER),
    *each(needless,
        "text_encoder.include text_encoder.stop_training_after text_encoder.stop_training_after_unit "
        "text_encoder.learning_rate text_encoder.train_embedding text_encoder.attention_mask "
        "text_encoder.guidance_scale text_encoder.gradient_checkpointing text_encoder.activation_offloading "
        "vae.include vae.train vae.stop_training_after vae.stop_training_after_unit vae.learning_rate "
        "vae.dropout_probability vae.train_embedding vae.attention_mask vae.guidance_scale "
        "vae.gradient_checkpointing vae.offload_fraction vae.activation_offloading", "of parts that are not trained"),
    *each(needless,
        "text_encoder_layer_skip text_encoder_sequence_length text_encoder_2_layer_skip "
        "text_encoder_2_sequence_length text_encoder_3_layer_skip text_encoder_4_layer_skip",
        "FLUX.2 reads 512 tokens at fixed layers"),
    needless("quantization", "every format here quantises the Linears of the blocks"),
    needless("train_dtype", "training computes in bf16 where the card has it"),
    *each(needless, "fallback_train_dtype enable_autocast_cache attention_mechanism train_device temp_device",
        "ComfyUI chooses"),
    needless("compile", COMPILED),
    *each(needless, "async_offloading force_circular_padding dataloader_threads", "how it computes, not what"),
    *each(needless, "force_v_prediction force_epsilon_prediction rescale_noise_scheduler_to_zero_terminal_snr", OTHER),
)  # fmt: skip
ADAPTER = (
    special("peft_type", "training.adapter.kind", "", values_of.kind, default="LORA"),
    special("lora_rank", "training.rank", "", values_of.rank, default=16),
    turned("lora_alpha", "training.alpha", number, "1 where it is not set: the LoRA's scale is 1 / rank", default=1.0),
    special("lora_decompose", "training.adapter.dora", "", values_of.dora),
    special("lora_decompose_output_axis", "training.adapter.dora", "see lora_decompose", nothing),
    needless("lora_decompose_norm_epsilon", "against a division by 0"),
    needless("lora_weight_dtype", "the adapters' weights are fp32"),
    special("layer_filter", "training.targets, training.adapter.include", "", values_of.layers, default=""),
    special("layer_filter_preset", "training.targets", "see layer_filter", nothing),
    special("layer_filter_regex", "training.adapter.include", "see layer_filter", nothing),
    used("dropout_probability", "training.adapter.dropout", number),
    special("lora_model_name", "training.adapter.start_from", "",
        lambda v, s: s.put("training.adapter.start_from", text(v)) if str(v).strip() else "none"),
    *each(special, "lokr_dim lokr_decompose_factor lokr_decompose_both", "training.adapter", "see peft_type", nothing),
    special("lokr_full_matrix", "training.rank", "", values_of.full_matrix),
    missing("lokr_weight_decompose", "DoRA is for LoRA alone here"),
    *each(needless, "lokr_use_tucker lokr_dora_on_output lokr_vec_trick", "how LoKr is computed"),
    *each(needless, "oft_block_size oft_block_share oft_scaled", ADAPTERS),
    needless("bundle_additional_embeddings", "embeddings are not trained"),
    *each(needless,
        "embedding embedding_learning_rate preserve_embedding_norm additional_embeddings embedding_weight_dtype",
        "embeddings are not trained"),
)  # fmt: skip
TRAINING = (
    special("epochs", "training.epochs", "0 steps count epochs",
        lambda v, s: (s.put("training.steps", 0), s.put("training.epochs", whole(v)), None)[2], default=100),
    used("batch_size", "training.batch", whole, default=1),
    used("gradient_accumulation_steps", "training.accumulate", whole),
    used("learning_rate", "training.learning_rate", number, default=3e-06),
    turned("learning_rate_scheduler", "training.optimizer.schedule",
        oneof(values_of.SCHEDULES, "this schedule is not here; it stays constant"), ""),
    used("learning_rate_warmup_steps", "training.optimizer.warmup", number, default=200.0),
    special("learning_rate_cycles", "training.optimizer.cycles", "",
        lambda v, s: s.put("training.optimizer.cycles", max(1, round(number(v))))),
    used("learning_rate_min_factor", "training.optimizer.end", number),
    missing("learning_rate_scaler", "the learning rate is used as it is", off=(None, "NONE")),
    *each(needless, "custom_learning_rate_scheduler scheduler_params", "no class is imported because a file names it"),
    special("optimizer.optimizer", "training.optimizer.optimizer", "", values_of.optimizer, default="ADAMW"),
    used("optimizer.weight_decay", "training.optimizer.weight_decay", number),
    *each(special, "optimizer.beta1 optimizer.beta2", "training.optimizer.betas", "", values_of.betas),
    special("optimizer.eps", "training.optimizer.eps", "", values_of.epsilon),
    needless("optimizer_defaults", "what its window offers for each optimizer"),
    used("clip_grad_norm", "training.optimizer.max_grad_norm", number),
    special("ema", "training.ema.ema_decay", "", values_of.ema),
    *each(special, "ema_decay ema_update_step_interval", "training.ema.ema_decay", "see ema", nothing),
    needless("non_ema_sampling", "see ema.ema_preview"),
    special("resolution", "dataset.resolution", "", values_of.resolution, default="512"),
    special("aspect_ratio_bucketing", "dataset.crop_options.crop_aspect", "",
        switched("dataset.crop_options.crop_aspect", "closest", "square")),
    special("timestep_distribution", "training.timesteps.distribution", "", values_of.times, default="UNIFORM"),
    *each(special, "noising_weight noising_bias", "training.timesteps", "see timestep_distribution", nothing),
    special("timestep_shift", "training.timesteps.shift", "", values_of.shift, default=1.0),
    special("dynamic_timestep_shifting", "training.timesteps.shift", "linear, by image size: see timestep_shift",
        nothing),
    used("min_noising_strength", "training.timesteps.min", number),
    used("max_noising_strength", "training.timesteps.max", number),
    special("mse_strength", "training.loss.loss", "", values_of.loss),
    *each(special, "mae_strength huber_strength log_cosh_strength", "training.loss.loss", "", values_of.loss),
    special("huber_delta", "training.loss.huber_width", "for huber", nothing),
    missing("loss_weight_fn", "choose timesteps.weighting", off=(None, "CONSTANT")),
    *each(needless, "loss_weight_strength vb_loss_strength", "see loss_weight_fn"),
    missing("loss_scaler", "losses are not multiplied by the batch", off=(None, "NONE")),
    missing("masked_training",
        "masks are files in a folder here: move NAME-masklabel.png there as NAME.png, and set mask_options.folder"),
    turned("unmasked_weight", "dataset.mask_options.minimum", number, "what the rest counts"),
    missing("unmasked_probability", "masks always act where there are any", off=(None, 0, 0.0, 0.1)),
    missing("normalize_masked_area_loss", "not here"),
    turned("masked_prior_preservation_weight", "training.preservation_options.outside_mask", number, "outside masks"),
    missing("custom_conditioning_image", "name the folder of references as dataset.references"),
    *each(missing, "offset_noise_weight generalized_offset_noise perturbation_noise_weight",
        "noise is added as it is drawn"),
)  # fmt: skip
FILES = (
    special("output_model_destination", "training.name", "", values_of.destination),
    turned("output_model_format", "training.save.format", oneof(values_of.FORMATS, "a format for whole models"), ""),
    turned("output_dtype", "training.save.precision",
        oneof({"BFLOAT_16": "bf16", "FLOAT_16": "fp16", "FLOAT_32": "fp32"}, "bf16, fp16 or fp32"), "",
        default="FLOAT_32"),
    special("tensorboard", "training.logs", "", switched("training.logs", "csv and TensorBoard", "csv"), default=True),
    *each(needless, "tensorboard_expose tensorboard_always_on tensorboard_port samples_to_tensorboard", OWN),
    special("backup_after", "training.checkpoints", "", values_of.every("backup_after", "backup_after_unit")),
    special("backup_after_unit", "training.checkpoints", "see backup_after", nothing),
    special("rolling_backup_count", "training.checkpoints.keep", "",
        lambda v, s: s.put("training.checkpoints.keep", whole(v))),
    *each(needless, "rolling_backup backup_before_save", "the last checkpoints are kept, as checkpoints.keep says"),
    special("save_every", "training.checkpoints.lora_every", "", values_of.loras_every),
    special("save_every_unit", "training.checkpoints.lora_every", "see save_every", nothing),
    *each(needless, "save_skip_first save_filename_prefix prevent_overwrites include_train_config",
        "nothing is overwritten, and the LoRA's header holds the settings"),
    needless("continue_last_backup", "an interrupted run goes on by itself"),
    special("sample_after", "previews.every", "", values_of.previews_every),
    special("sample_after_unit", "previews.every", "see sample_after", nothing),
    *each(needless, "sample_skip_first sample_image_format sample_video_format sample_audio_format", OWN),
    special("concept_file_name", "dataset", "its file is read if it lies beside this one, or from --dataset", nothing),
    special("sample_definition_file_name", "previews.prompts", "its file is read if it lies beside this one", nothing),
    *each(missing, "validation validate_after validate_after_unit",
        "wire pictures into Validation Loss, or set validation_loss.share", off=(None, False, 1, "EPOCH")),
    used("seed", "training.seed", whole),
    always("latent_caching", "latents and embeds are always cached"),
    *each(needless,
        "clear_cache_before_training cache_dir workspace_dir only_cache debug_mode debug_dir huggingface_cache_dir "
        "offline_mode", OWN),
    *each(needless,
        "multi_gpu device_indexes gradient_reduce_precision fused_gradient_reduce async_gradient_reduce "
        "async_gradient_reduce_buffer", "see docs/terminal.md for several cards"),
    *each(needless, "cloud secrets", "nothing is uploaded, and no key is kept"),
    *each(needless, "concepts samples", "a list without entries"),
    needless("frames", "pictures"),
    needless("__version", "of its file format"),
)  # fmt: skip
OPTIMIZER_REST = (
    *each(needless, "optimizer.stochastic_rounding", "the adapters' weights are fp32"),
    *each(needless, "optimizer.foreach optimizer.fused optimizer.fused_back_pass optimizer.differentiable "
          "optimizer.capturable optimizer.maximize optimizer.is_paged optimizer.min_8bit_size optimizer.optim_bits "
          "optimizer.quant_block_size optimizer.log_every optimizer.fsdp_in_use optimizer.block_wise optimizer.compile "
          "optimizer.use_triton optimizer.percentile_clipping", "how it computes, not what"),
    *each(missing, "optimizer.beta3 optimizer.d0 optimizer.d_coef optimizer.decouple optimizer.growth_rate "
          "optimizer.use_bias_correction optimizer.safeguard_warmup optimizer.decay_rate optimizer.eps2 "
          "optimizer.clip_threshold optimizer.relative_step optimizer.scale_parameter optimizer.warmup_init "
          "optimizer.amsgrad optimizer.weight_lr_power optimizer.r optimizer.cautious",
          "the optimizer's usual value is taken", off=(None, False, 0, 0.0, 1, 1.0, -0.8, 0.001, 1e-30, 1e-6)),
    *each(needless, "optimizer.adam_w_mode optimizer.alpha optimizer.bias_correction optimizer.centered "
          "optimizer.dampening optimizer.initial_accumulator_value optimizer.initial_accumulator optimizer.lr_decay "
          "optimizer.max_unorm optimizer.momentum optimizer.nesterov optimizer.no_prox optimizer.decoupled_decay "
          "optimizer.fixed_decay optimizer.rectify optimizer.degenerated_to_sgd optimizer.k optimizer.xi "
          "optimizer.n_sma_threshold optimizer.ams_bound optimizer.adanorm optimizer.adam_debias optimizer.slice_p "
          "optimizer.weight_decay_by_lr optimizer.prodigy_steps optimizer.use_speed optimizer.split_groups "
          "optimizer.split_groups_mean optimizer.factored optimizer.factored_fp32 optimizer.use_stableadamw "
          "optimizer.use_cautious optimizer.use_grams optimizer.use_adopt optimizer.d_limiter "
          "optimizer.use_schedulefree optimizer.use_orthograd optimizer.nnmf_factor optimizer.orthogonal_gradient "
          "optimizer.use_atan2 optimizer.use_AdEMAMix optimizer.beta3_ema optimizer.alpha_grad optimizer.beta1_warmup "
          "optimizer.min_beta1 optimizer.Simplified_AdEMAMix optimizer.kourkoutas_beta optimizer.schedulefree_c "
          "optimizer.ns_steps optimizer.MuonWithAuxAdam optimizer.muon_hidden_layers optimizer.muon_adam_regex "
          "optimizer.muon_adam_lr optimizer.muon_te1_adam_lr optimizer.muon_te2_adam_lr optimizer.muon_adam_config "
          "optimizer.rms_rescaling optimizer.normuon_variant optimizer.beta2_normuon optimizer.low_rank_ortho "
          "optimizer.ortho_rank optimizer.accelerated_ns optimizer.cautious_wd optimizer.approx_mars "
          "optimizer.auto_kappa_p", MAGIC),
)  # fmt: skip
SAMPLE = (
    special("prompt", "previews.prompts", "", nothing),
    used("negative_prompt", "previews.negative", text),
    special("width", "previews.width", "", side("previews.width")),
    special("height", "previews.height", "", side("previews.height")),
    used("seed", "previews.seed", whole),
    used("diffusion_steps", "previews.steps", whole),
    used("cfg_scale", "previews.guidance", number),
    needless("enabled", "prompts that are off are left out"),
    missing("random_seed", "seeds are fixed, so that pictures compare"),
    needless("noise_scheduler", "FLUX.2's own"),
    *each(needless,
        "frames length text_encoder_1_layer_skip text_encoder_1_sequence_length text_encoder_2_layer_skip "
        "text_encoder_2_sequence_length text_encoder_3_layer_skip text_encoder_4_layer_skip "
        "transformer_attention_mask force_last_timestep sample_inpainting base_image_path mask_image_path", OTHER),
)  # fmt: skip
