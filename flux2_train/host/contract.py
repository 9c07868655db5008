"""What this pack relies on in ComfyUI: every name of its code that we import, call, or give another behaviour.

ComfyUI is free to change these. The pack looks for all of them when it is loaded, which takes milliseconds. What is
missing is named, with the version and with what it is for; the rest of the pack works. A test holds that this table is
complete.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import UserError

OLDEST, NEWEST = "0.16.3", "0.33.0"  # ComfyUI's versions on which the tests of the engine have run

_TRIED = (
    f"Its tests have run on ComfyUI {OLDEST} to {NEWEST}: look for a newer version of the pack, or use one of these."
)

LOADING = "loading FLUX.2 models"
TEXT = "encoding captions"
PICTURES = "encoding and decoding images"
TRAINING = "training"
SAMPLING = "painting images"
LORAS = "applying and merging LoRAs"
GRAPH = "the nodes"
BROWSER = "showing runs, texts and pictures in the browser"


@dataclass(frozen=True)
class Need:
    """``name`` is ``module:path.to.object``, ``takes`` are parameters that it must have, ``why`` says what it is for.

    Something optional has come with a newer ComfyUI; ``why`` says what happens without it.
    """

    name: str
    why: str
    takes: tuple[str, ...] = ()
    optional: bool = False


def _optional(name: str, why: str) -> Need:
    return Need(name, why, optional=True)


_MODELS = "comfy.model_patcher:ModelPatcher"
_MEMORY = "comfy.model_management"

# fmt: off
NEEDS: dict[str, tuple[Need, ...]] = {
    LOADING: (
        Need("comfy.sd:load_diffusion_model", "loads an original file", ("model_options",)),
        Need("comfy.sd:load_diffusion_model_state_dict", "builds a model from tensors", ("model_options", "metadata")),
        Need("comfy.model_base:Flux2", "tells FLUX.2 from other models"),
        Need("comfy.conds:CONDRegular", "what the transformer gets of a caption"),
        Need("comfy.model_base:model_sampling", "builds a model without its weights"),
        Need("comfy.model_detection:unet_prefix_from_state_dict", "finds the prefix of a checkpoint's names"),
        Need("comfy.utils:convert_old_quants", "reads older fp8 files", ("model_prefix", "metadata")),
        Need("comfy.utils:state_dict_prefix_replace", "renames weights", ("filter_keys",)),
        Need("comfy.utils:load_torch_file", "maps a file", ("safe_load", "device", "return_metadata")),
        Need("comfy.utils:weight_dtype", "the dtype of a file"),
        Need("comfy.quant_ops:QuantizedTensor", "holds quantised weights"),
        Need("comfy.quant_ops:QuantizedTensor.from_float", "quantises", ("scale",)),
        Need("comfy.quant_ops:QUANT_ALGOS", "which formats there are"),
        Need(_MODELS, "a MODEL"),
        Need(f"{_MODELS}.clone", "gives a MODEL its own options"),
        Need(f"{_MODELS}.model_state_dict", "reads weights that come when they are first used"),
        Need(f"{_MODELS}.detach", "lets go of weights"),
        Need(f"{_MODELS}.unpatch_model", "takes weights off the device", ("device_to", "unpatch_weights")),
        Need(f"{_MODELS}.model_size", "the bytes of a model"),
        Need(f"{_MODELS}.set_attachments", "notes what a file is"),
        Need(f"{_MODELS}.get_attachment", "what was noted"),
        Need(f"{_MEMORY}:unet_offload_device", "where weights wait"),
        Need("folder_paths:get_filename_list", "lists model files"),
        Need("folder_paths:get_folder_paths", "ComfyUI's folders"),
        Need("folder_paths:get_full_path", "finds a file"),
        Need("folder_paths:get_full_path_or_raise", "finds a file"),
        Need("folder_paths:add_model_folder_path", "adds folders that the command line names"),
        Need("folder_paths:get_input_directory", "relative folders"),
        Need("folder_paths:get_output_directory", "run folders"),
        Need("folder_paths:get_user_directory", "the caches' folder"),
        Need("comfy.cli_args:args", "how ComfyUI was started"),
        Need("comfy.options:enable_args_parsing", "reads a command line outside of ComfyUI's main.py"),
        Need("comfy.memory_management:aimdo_enabled", "whether there is dynamic VRAM"),
        Need("comfy.model_patcher:CoreModelPatcher", "the patcher of this ComfyUI", ("load_device", "offload_device")),
        _optional("comfy.cli_args:enables_dynamic_vram", "without it there is no dynamic VRAM"),
        _optional("comfy.model_patcher:ModelPatcherDynamic", "without it there is no dynamic VRAM"),
    ),
    TEXT: (
        Need("comfy.sd:CLIP", "builds a text encoder",
             ("embedding_directory", "parameters", "state_dict", "model_options")),
        Need("comfy.sd:CLIP.clone", "encodes in parts"),
        Need("comfy.sd:CLIP.tokenize", "tokens of a caption"),
        Need("comfy.sd:CLIP.set_tokenizer_option", "the length to which nano pads captions"),
        Need("comfy.sd:CLIP.encode_from_tokens_scheduled", "encodes a caption"),
        Need("comfy.sd:CLIPType.FLUX2", "names the kind of text encoder"),
        Need("comfy.sd:load_text_encoder_state_dicts", "loads a text encoder", ("model_options",)),
        Need("comfy.sd:llama_detect", "the sizes of a text encoder"),
        Need("comfy.text_encoders.flux:klein_te", "klein's text encoder", ("model_type",)),
        Need("comfy.text_encoders.flux:KleinTokenizer", "klein's tokenizer"),
        Need("comfy.text_encoders.flux:Flux2Tokenizer", "dev's tokenizer, which counts tokens", ("tokenizer_data",)),
        _optional("comfy.text_encoders.flux:klein_vl_te", "without it the language model of a Qwen3-VL is used alone"),
        Need("comfy.utils:calculate_parameters", "counts a text encoder's weights"),
    ),
    PICTURES: (
        Need("comfy.sd:VAE", "builds an autoencoder", ("sd", "dtype", "metadata")),
        Need("comfy.sd:VAE.encode", "encodes images"),
        Need("comfy.sd:VAE.encode_tiled", "encodes images that do not fit"),
        Need("comfy.sd:VAE.encode_tiled_", "encodes images that do not fit"),
        Need("comfy.sd:VAE.decode", "decodes latents"),
        Need("comfy.ops:disable_weight_init", "builds an autoencoder without filling its weights"),
        Need(f"{_MEMORY}:vae_offload_device", "where weights wait"),
        Need("comfy.utils:common_upscale", "scales reference images"),
    ),
    TRAINING: (
        Need("comfy.ldm.flux.layers:ModulationOut", "whether adapters act on the modulation of blocks"),
        Need("comfy.ldm.flux.layers:DoubleStreamBlock", "the blocks that are recomputed and streamed"),
        Need("comfy.ldm.flux.layers:SingleStreamBlock", "the blocks that are recomputed and streamed"),
        Need("comfy.ldm.modules.attention:attention_pytorch", "attention with a gradient", ("mask", "skip_reshape")),
        Need("comfy.ops:cast_bias_weight", "a layer's weight as it acts",
             ("dtype", "device", "bias_dtype", "offloadable")),
        Need("comfy.ops:uncast_bias_weight", "gives that weight back"),
        Need("comfy.patcher_extension:PatcherInjection", "puts adapters into the model", ("inject", "eject")),
        Need("comfy.patcher_extension:WrappersMP.APPLY_MODEL", "calls of the model"),
        Need("comfy.patcher_extension:WrappersMP.DIFFUSION_MODEL", "calls of the transformer"),
        Need("comfy.patcher_extension:copy_nested_dicts", "options of a call"),
        Need("comfy.patcher_extension:merge_nested_dicts", "options of a call", ("copy_dict1",)),
        Need(f"{_MODELS}.set_injections", "puts adapters into the model"),
        Need(f"{_MODELS}.remove_injections", "takes adapters out"),
        Need(f"{_MODELS}.eject_model", "takes adapters out"),
        Need(f"{_MODELS}.use_ejected", "moves weights without adapters", ("skip_and_inject_on_exit_only",)),
        Need(f"{_MODELS}.partially_load", "moves a part of the weights"),
        Need(f"{_MODELS}.loaded_size", "how much is on the device"),
        Need(f"{_MODELS}._load_list", "the order in which weights are moved"),
        Need(f"{_MODELS}.is_dynamic", "whether comfy-aimdo moves the weights"),
        Need(f"{_MEMORY}:in_training", "tells ComfyUI's layers that gradients are needed"),
        Need(f"{_MEMORY}:load_models_gpu", "loads a model", ("memory_required",)),
        Need(f"{_MEMORY}:current_loaded_models", "what else is loaded"),
        Need(f"{_MEMORY}:free_memory", "unloads models"),
        Need(f"{_MEMORY}:get_free_memory", "free memory"),
        Need(f"{_MEMORY}:get_total_memory", "memory in all"),
        Need(f"{_MEMORY}:get_torch_device", "the device"),
        Need(f"{_MEMORY}:is_device_cpu", "whether that is the CPU"),
        Need(f"{_MEMORY}:minimum_inference_memory", "memory that ComfyUI keeps free"),
        Need(f"{_MEMORY}:extra_reserved_memory", "memory that ComfyUI keeps free"),
        Need(f"{_MEMORY}:module_size", "bytes of a layer"),
        Need(f"{_MEMORY}:pin_memory", "pins streamed weights"),
        Need(f"{_MEMORY}:unpin_memory", "unpins them"),
        Need(f"{_MEMORY}:should_use_bf16", "whether the card computes in bf16"),
        Need(f"{_MEMORY}:soft_empty_cache", "gives memory back"),
        Need(f"{_MEMORY}:throw_exception_if_processing_interrupted", "Cancel"),
        Need(f"{_MEMORY}:InterruptProcessingException", "Cancel"),
        Need(f"{_MEMORY}:OOM_EXCEPTION", "out of memory"),
        Need(f"{_MEMORY}:VRAMState.NO_VRAM", "--novram"),
        Need(f"{_MEMORY}:vram_state", "--novram"),
        Need(f"{_MEMORY}:is_nvidia", "which card"),
        Need(f"{_MEMORY}:is_wsl", "Windows' Linux"),
        Need(f"{_MEMORY}:torch_version_numeric", "torch's version"),
        _optional(f"{_MEMORY}:get_all_torch_devices", "without it dynamic VRAM is not started in a terminal"),
        _optional(f"{_MEMORY}:is_oom", "without it out of memory is known by its exception"),
        _optional(f"{_MEMORY}:MAX_PINNED_MEMORY", "without it pinned memory has no limit of ComfyUI's"),
        _optional("comfy.quant_ops:ck.apply_rope", "without it ComfyUI rotates queries and keys, which takes longer"),
        _optional("comfy_api.torch_helpers.torch_compile:COMPILE_KEY", "without it core compiles no models"),
    ),
    SAMPLING: (
        Need("comfy.sample:prepare_noise", "noise of a seed"),
        Need("comfy.sample:sample_custom", "samples", ("callback", "disable_pbar", "seed")),
        Need("comfy.samplers:SAMPLER_NAMES", "which samplers there are"),
        Need("comfy.samplers:sampler_object", "a sampler by its name"),
        Need("comfy_extras.nodes_flux:get_schedule", "FLUX.2's schedule"),
        Need("latent_preview:prepare_callback", "the progress of sampling"),
        Need("node_helpers:conditioning_set_values", "reference images and guidance"),
        Need(f"{_MEMORY}:intermediate_device", "where images are kept"),
        Need(f"{_MODELS}.add_wrapper_with_key", "reference images"),
        Need(f"{_MODELS}.remove_wrappers_with_key", "reference images"),
    ),
    LORAS: (
        Need("comfy.lora:load_lora", "the stock loader, to which saved files are compared", ("log_missing",)),
        Need("comfy.lora:model_lora_keys_unet", "names of layers in LoRA files"),
        Need("comfy.lora:calculate_weight", "a weight with its LoRAs"),
        Need("comfy.lora_convert:convert_lora", "other trainers' names"),
        Need("comfy.weight_adapter:WeightAdapterBase", "kinds of adapters"),
        Need("comfy.weight_adapter.bypass:BypassForwardHook", "LoRAs beside the weights"),
        Need(f"{_MODELS}.add_patches", "merges a LoRA"),
        Need("comfy.ops:mixed_precision_ops", "quantised layers of a merged file"),
    ),
    GRAPH: (
        Need("comfy_api.latest:ComfyExtension", "the pack's door"),
        Need("comfy_api.latest:io", "inputs and outputs"),
        Need("comfy_api.latest:io.Autogrow", "sockets that grow"),
        Need("comfy_api.latest:ui.PreviewImage", "images on nodes"),
        Need("comfy.utils:ProgressBar", "progress", ("node_id",)),
    ),
    BROWSER: (
        Need("server:PromptServer.send_sync", "sends texts, pictures and steps to open tabs"),
        Need("server:PromptServer.routes", "the addresses that the pack answers"),
        Need("server:PromptServer.app", "checks a graph before it is queued"),
        Need("server:PromptServer.number", "queues a waiting job"),
        Need("server:PromptServer.prompt_queue", "queues a waiting job, and tells which graph runs"),
        Need("server:nodes.NODE_CLASS_MAPPINGS", "tells which nodes of a graph run"),
        Need("execution:PromptQueue.put", "queues a waiting job"),
        Need("execution:PromptQueue.get_tasks_remaining", "tells whether anything is queued"),
        Need("execution:PromptQueue.currently_running", "tells which graph runs"),
    ),
}
# They start ComfyUI's server: looked into where that has happened, and not in a terminal.
_SERVERS = ("server", "execution")
# fmt: on


@cache
def lacking(use: str) -> tuple[str, ...]:
    """The names that this ComfyUI lacks and ``use`` needs, and the parameters that they no longer take."""
    return tuple(text for need in NEEDS[use] for text in _lacking(need))


def sentences() -> list[str]:
    """What does not work in this ComfyUI, one sentence for each use."""
    return [_sentence(use) for use in NEEDS if lacking(use)]


def _lacking(need: Need) -> Iterator[str]:
    module, _, path = need.name.partition(":")
    shown = f"{module}.{path}"
    if module in _SERVERS and module not in sys.modules:
        return
    try:
        thing: Any = importlib.import_module(module)
        for part in path.split("."):
            thing = None if _is_set_by(thing, part) else getattr(thing, part)
    except (ImportError, AttributeError):
        if not need.optional:
            yield f"{shown} ({need.why})"
        return
    for name in need.takes:
        if not _takes(thing, name):
            yield f"{shown}'s parameter {name} ({need.why})"


def _is_set_by(thing: Any, name: str) -> bool:
    """Whether the constructor of a class sets that attribute, which the class itself has not."""
    code = getattr(getattr(thing, "__init__", None), "__code__", None)
    return inspect.isclass(thing) and not hasattr(thing, name) and code is not None and name in code.co_names


def _takes(thing: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):  # it is written in C, and says nothing about itself
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def say() -> None:
    """Log what this ComfyUI lacks, and what therefore does not work. Call once, when the pack is loaded."""
    for text in sentences():
        logging.warning("FLUX.2 Train: %s", text)


def require(use: str) -> None:
    """Raises UserError if this ComfyUI lacks something that ``use`` needs."""
    if lacking(use):
        raise UserError(_sentence(use))


def _sentence(use: str) -> str:
    return (
        f"ComfyUI {version()} has no {'; no '.join(lacking(use))}. Without it this does not work: {use}. The rest of "
        f"the pack works. {_TRIED}"
    )


def why_not_loaded(error: ImportError) -> str:
    """The text for an import of the pack that ComfyUI's own code has made fail, or another package's."""
    absent = [text for use in NEEDS for text in lacking(use)]
    if not absent:
        return f"FLUX.2 Train cannot be loaded: {error}. Install the packages of its requirements.txt."
    return f"FLUX.2 Train cannot be loaded: ComfyUI {version()} has no {'; no '.join(absent)}. {_TRIED}"


def version() -> str:
    """The version of the ComfyUI that runs."""
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return "(of an unknown version)"
