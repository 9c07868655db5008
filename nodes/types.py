"""The pack's own wire types and what all nodes share."""

from comfy_api.latest import io

TRAIN, OPTIONS, USE = "FLUX.2/Train", "FLUX.2/Options", "FLUX.2/Use"  # categories, in the order of a graph

FluxDataset = io.Custom("FLUX2_DATASET")
FluxEmbeds = io.Custom("FLUX2_EMBEDS")
FluxLatents = io.Custom("FLUX2_LATENTS")
FluxOptions = io.Custom("FLUX2_OPTIONS")  # of a run: from option nodes to LoRA Trainer, a nodes.options.Options
FluxDatasetOptions = io.Custom("FLUX2_DATASET_OPTIONS")  # from option nodes to Dataset Folder
