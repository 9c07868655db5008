"""SimpleTuner's keys that come in groups: what each group is for, and why it has no counterpart."""

from __future__ import annotations

from ..common import COMPILED
from ..rules import Rule, always, each, missing, needless

GROUPS: tuple[Rule, ...] = (
    *each(
        needless,
        "pretrained_evaluation_model_name_or_path pretrained_gemma_model_name_or_path "
        "pretrained_grounding_model_name_or_path pretrained_model_name_or_path "
        "pretrained_t5_model_name_or_path pretrained_transformer_subfolder pretrained_unet_model_name_or_path "
        "pretrained_unet_subfolder",
        "the flavour names the files, which ComfyUI keeps in its folders",
    ),
    *each(
        needless,
        "sdnq_compile_mode sdnq_group_size sdnq_hadamard_group_size sdnq_quantized_matmul_dtype "
        "sdnq_use_hadamard sdnq_use_quantized_matmul sdnq_weights_dtype",
        "options of a quantiser that is not used here",
    ),
    *each(
        always,
        "gradient_checkpointing_backend gradient_checkpointing_offload_attention "
        "gradient_checkpointing_offload_pin_memory_max_buckets gradient_checkpointing_offload_prefetch "
        "gradient_checkpointing_segment_stride",
        "the planner chooses what is recomputed and where it is kept; see Memory",
    ),
    *each(
        needless,
        "ema_cpu_only ema_device ema_foreach_disable ema_update_interval",
        "the mean lies in memory and follows every step",
    ),
    *each(
        missing,
        "crepa_adjacent_distance crepa_adjacent_tau crepa_block_index crepa_cumulative_neighbors "
        "crepa_cutoff_step crepa_decay_steps crepa_drop_vae_encoder crepa_enabled crepa_encoder "
        "crepa_encoder_frames_batch_size crepa_encoder_image_size crepa_feature_source crepa_lambda "
        "crepa_lambda_end crepa_model crepa_normalize_by_frames crepa_normalize_neighbour_sum crepa_power "
        "crepa_scheduler crepa_self_flow crepa_self_flow_mask_ratio crepa_similarity_ema_decay "
        "crepa_similarity_threshold crepa_spatial_align crepa_teacher_block_index crepa_threshold_mode "
        "crepa_use_backbone_features crepa_use_tae crepa_warmup_steps",
        "not here",
    ),
    *each(
        missing,
        "layersync_enabled layersync_lambda layersync_student_block layersync_teacher_block",
        "not here",
    ),
    *each(
        missing,
        "urepa_cutoff_step urepa_decay_steps urepa_enabled urepa_encoder_image_size urepa_lambda "
        "urepa_lambda_end urepa_manifold_weight urepa_model urepa_power urepa_scheduler "
        "urepa_similarity_ema_decay urepa_similarity_threshold urepa_threshold_mode urepa_use_tae "
        "urepa_warmup_steps",
        "not here",
    ),
    *each(
        missing,
        "xm_block_size xm_candidate_count xm_enabled xm_selection_scope xm_training_target",
        "not here",
    ),
    *each(
        missing,
        "nextlat_block_index nextlat_enabled nextlat_kl_weight nextlat_state_loss nextlat_weight",
        "not here",
    ),
    *each(
        missing,
        "timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion timestep_bias_strategy",
        "without effect in rectified flow",
    ),
    *each(
        needless,
        "vae_cache_disable vae_cache_ondemand vae_cache_scan_behaviour vae_enable_patch_conv "
        "vae_enable_slicing vae_enable_temporal_roll",
        "ComfyUI looks after this itself",
    ),
    *each(
        always,
        "ramtorch ramtorch_controlnet ramtorch_disable_extensions ramtorch_disable_sync_hooks "
        "ramtorch_target_modules ramtorch_text_encoder ramtorch_text_encoder_percent "
        "ramtorch_transformer_percent ramtorch_vae",
        "set how much is streamed with offload or Memory",
    ),
    *each(
        needless,
        "fsdp_activation_checkpointing fsdp_auto_wrap_policy fsdp_cpu_offload fsdp_cpu_ram_efficient_loading "
        "fsdp_enable fsdp_limit_all_gathers fsdp_reshard_after_forward fsdp_state_dict_type "
        "fsdp_transformer_layer_cls_to_wrap fsdp_version",
        "how its processes and cards are set up",
    ),
    *each(
        needless,
        "dynamo_backend dynamo_dynamic dynamo_fullgraph dynamo_mode dynamo_use_regional_compilation",
        COMPILED,
    ),
    *each(
        needless,
        "aspect_bucket_alignment aspect_bucket_disable_rebuild aspect_bucket_rounding aspect_bucket_worker_count",
        "buckets are multiples of 16 pixels, as in FLUX.2 there",
    ),
    *each(
        needless,
        "delete_invalid_checkpoints delete_nsfw_images delete_problematic_images delete_unwanted_images",
        "no picture is ever deleted",
    ),
    *each(
        needless,
        "nsfw_check_backend_types nsfw_check_min_votes nsfw_check_models nsfw_check_sample_types "
        "nsfw_check_video_frame_count nsfw_check_video_frame_selection nsfw_check_video_min_flagged_frames",
        "pictures are not judged",
    ),
    *each(
        needless,
        "audio_channels audio_duration_interval audio_flow_schedule_shift audio_max_duration_seconds "
        "audio_min_duration_seconds audio_truncation_mode",
        "pictures only",
    ),
    *each(
        needless,
        "validation_adapter_config validation_adapter_mode validation_adapter_name validation_adapter_path "
        "validation_adapter_strength validation_audio_duration validation_audio_only "
        "validation_guidance_skip_layers validation_guidance_skip_layers_start "
        "validation_guidance_skip_layers_stop validation_guidance_skip_scale validation_image_format "
        "validation_image_quality validation_input validation_internal_guidance_scale "
        "validation_ltx2_video_conditioning validation_lycoris_strength validation_lyrics validation_method "
        "validation_multigpu validation_no_cfg_until_timestep validation_noise_scheduler "
        "validation_num_video_frames validation_preview validation_preview_steps validation_randomize "
        "validation_seed_source validation_stitch_input_location validation_using_datasets",
        "how its pictures are painted and kept",
    ),
    *each(
        needless,
        "eval_dataset_id eval_dataset_pooling eval_epoch_interval eval_loss_disable eval_timesteps",
        "the loss at fixed noise is measured on training images or on held_out",
    ),
    *each(
        needless,
        "acestep_lora_target cosmos3_generator_component cosmos3_reasoner_component "
        "deepfloyd_validation_pipeline_mode deepfloyd_validation_stage1_guidance "
        "deepfloyd_validation_stage1_model deepfloyd_validation_stage1_num_inference_steps "
        "deepfloyd_validation_stage2_guidance deepfloyd_validation_stage2_model "
        "deepfloyd_validation_stage2_num_inference_steps deepfloyd_validation_stage3_guidance "
        "deepfloyd_validation_stage3_mode deepfloyd_validation_stage3_model "
        "deepfloyd_validation_stage3_noise_level disable_segmented_timestep_sampling "
        "flux_attention_masked_training freeze_encoder_after freeze_encoder_before freeze_encoder_strategy "
        "hidream_load_balancing_loss_weight hidream_use_load_balancing_loss ideogram_auto_json "
        "ideogram_fp8_base_upcast ideogram_load_unconditional_transformer ideogram_prompt_enhancer_head_id "
        "ideogram_prompt_upsample ideogram_schedule_mu ideogram_schedule_std ideogram_uncond_ramtorch "
        "ideogram_validation krea2_reference_latents layer_freeze_strategy "
        "ltx2_first_frame_conditioning_probability ltx2_intrinsic_conditioning "
        "ltx2_prefix_conditioning_frames ltx2_prefix_conditioning_probability "
        "ltx2_reference_spatial_scale_factor ltx2_reference_temporal_scale_factor "
        "ltx2_validation_audio_guidance ltx2_validation_pipeline_mode "
        "ltx2_validation_spatial_upsampler_filename ltx2_validation_spatial_upsampler_model ltx_i2v_prob "
        "ltx_partial_noise_fraction ltx_protect_first_frame ltx_train_mode lyrics_embedder_lr "
        "lyrics_embedder_lr_scheduler lyrics_embedder_optimizer lyrics_embedder_train max_grounding_entities "
        "minimax_h3_reference_mode minimax_h3_sparse_attention minimax_h3_sparse_block_shape "
        "minimax_h3_sparse_share_heads minimax_h3_sparse_start_layer minimax_h3_sparse_video_kv_fraction "
        "minimax_h3_target_mode minimax_music_lm_adapter minimax_music_lm_adapter_strength "
        "minimax_music_lm_max_frames minimax_music_lm_precache_mode minimax_music_train_component "
        "pixart_validation_pipeline_mode pixart_validation_stage1_model pixart_validation_stage2_model "
        "prodigy_steps rescale_betas_zero_snr sana_complex_human_instruction sd3_clip_uncond_behaviour "
        "sd3_t5_uncond_behaviour sdxl_refiner_uses_full_range sdxl_validation_pipeline_mode "
        "sdxl_validation_stage1_model sdxl_validation_stage2_model snr_weight soft_min_snr_sigma_data "
        "t5_padding text_encoder_lr training_scheduler_timestep_spacing unet_attention_slice use_soft_min_snr "
        "wan_force_2_1_time_embedding wan_validation_load_other_stage",
        "for models other than FLUX.2",
    ),
    *each(
        needless,
        "checkpointing_rolling_steps checkpointing_steps checkpointing_use_tempdir checkpoints_rolling_total_limit",
        "a checkpoint is whole or not there; see Checkpoints",
    ),
    *each(
        missing,
        "control controlnet_custom_config controlnet_model_name_or_path "
        "custom_text_encoder_intermediary_layers custom_tracker",
        "not here",
    ),
    *each(
        needless,
        "enable_chunked_feed_forward feed_forward_chunk_size fused_qkv_projections save_text_encoder "
        "seed_for_each_device strict_epoch_limit text_embed_full_cache text_encoder_limit trust_remote_code",
        "how it computes, not what",
    ),
)
