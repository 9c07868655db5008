"""The pack's own wire types and what all nodes share."""

from comfy_api.latest import io

CATEGORY = "FLUX.2/Train"

FluxDataset = io.Custom("FLUX2_DATASET")
FluxEmbeds = io.Custom("FLUX2_EMBEDS")
FluxLatents = io.Custom("FLUX2_LATENTS")
FluxCaptionOptions = io.Custom("FLUX2_CAPTION_OPTIONS")
FluxCropOptions = io.Custom("FLUX2_CROP_OPTIONS")
FluxAdapterOptions = io.Custom("FLUX2_ADAPTER_OPTIONS")
FluxSaveOptions = io.Custom("FLUX2_SAVE_OPTIONS")
FluxObjective = io.Custom("FLUX2_OBJECTIVE")
FluxTimesteps = io.Custom("FLUX2_TIMESTEPS")
FluxOptimizer = io.Custom("FLUX2_OPTIMIZER")
FluxMemory = io.Custom("FLUX2_MEMORY")
FluxPreservation = io.Custom("FLUX2_PRESERVATION")
FluxCheckpoints = io.Custom("FLUX2_CHECKPOINTS")
FluxMaskOptions = io.Custom("FLUX2_MASK_OPTIONS")
FluxReferenceOptions = io.Custom("FLUX2_REFERENCE_OPTIONS")
FluxValidation = io.Custom("FLUX2_VALIDATION")
FluxValidationLoss = io.Custom("FLUX2_VALIDATION_LOSS")
