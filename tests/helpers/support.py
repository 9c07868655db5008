"""Small models for tests, built by ComfyUI's own loaders from state dicts made here, and a training problem."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.supported_models
import pytest
import torch

from bench.shapes import flux2_shapes
from flux2_train.adapters import targets, write
from flux2_train.adapters.live import Adapters, Site
from flux2_train.data import cache
from flux2_train.data.folder import read_folder
from flux2_train.host.borrowed.borrow import linears, training_mode
from flux2_train.host.borrowed.frozen import row_norms
from flux2_train.host.borrowed.velocity import Condition, velocity
from flux2_train.host.loading import quantise
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.train.rollout import rolled_input
from flux2_train.train.step_input import step_input

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]

PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
# format in comfy_quant, layout, what the layout's quantiser wants, what else comfy_quant says
QUANTISED = {
    "scaled_fp8_e4m3": ("float8_e4m3fn", {"scale": "recalculate"}, {}),
    "scaled_fp8_e5m2": ("float8_e5m2", {"scale": "recalculate"}, {}),
    "nvfp4": ("nvfp4", {}, {}),
    "nvfp4_awq": ("nvfp4", {}, {}),
    "mxfp8": ("mxfp8", {}, {}),
    "int8": ("int8_tensorwise", {"is_weight": True}, {}),
    "int8_convrot": (
        "int8_tensorwise",
        {"is_weight": True, "per_channel": True, "convrot": True, "convrot_groupsize": 64},
        {"convrot": True, "convrot_groupsize": 64},
    ),
    "convrot_w4a4": ("convrot_w4a4", {"convrot_groupsize": 64}, {"convrot_groupsize": 64}),
    "w4a8": ("asym_w4a8_int8", {"convrot_groupsize": 64}, {"group_size": 16, "convrot_groupsize": 64}),
}
FORMATS = (*PLAIN, *QUANTISED, "old_scaled_fp8")


def tiny_flux2(guidance: bool = False, context: int = 96, format: str = "fp32", single: int = 2, double: int = 1):
    """A FLUX.2 MODEL of hidden size 128 with ``double`` and ``single`` blocks, from ComfyUI's stock loader.

    ``format`` says how its blocks' Linears are stored, one of FORMATS; the model computes in fp32.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in flux2_shapes(128, double, single, context, guidance)
    }
    with torch.inference_mode():
        options = {"dtype": PLAIN[format]} if format in PLAIN else {}
        return comfy.sd.load_diffusion_model_state_dict(stored(weights, format), model_options=options)


def stored(weights: dict, format: str) -> dict:
    """The state dict with its blocks' matrices in a format that ComfyUI reads from files."""
    if format in PLAIN:
        return {k: v.to(PLAIN[format]) if _in_block(k, v) else v for k, v in weights.items()}
    found = {}
    for name, value in weights.items():
        layer = name.removesuffix(".weight")
        if not _in_block(name, value):
            found[name] = value
        elif format == "old_scaled_fp8":
            scale = value.abs().max() / 448
            found |= {name: (value / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}
        else:
            found |= _quantised(layer, value, format)
    return found | ({"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)} if format == "old_scaled_fp8" else {})


def _in_block(name: str, value: torch.Tensor) -> bool:
    return value.ndim == 2 and "_blocks." in name


def require_precision(precision: str) -> None:
    """Skip the test where the running ComfyUI cannot read what Load FLUX.2 calls by that name."""
    if precision in quantise.FORMATS and precision not in quantise.available():
        pytest.skip(f"this ComfyUI has no {precision}")


def _quantised(layer: str, value: torch.Tensor, format: str) -> dict:
    kind, options, notes = QUANTISED[format]
    if kind not in comfy.quant_ops.QUANT_ALGOS or (kind == "mxfp8" and "mxfp8" not in quantise.available()):
        pytest.skip(f"this ComfyUI has no {kind}")
    layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    tensor = comfy.quant_ops.QuantizedTensor.from_float(value, layout, **options)
    found = dict(tensor.state_dict(f"{layer}.weight"))
    found[f"{layer}.comfy_quant"] = torch.frombuffer(
        bytearray(json.dumps({"format": kind, **notes}).encode()), dtype=torch.uint8
    )
    if format == "nvfp4_awq":
        found[f"{layer}.pre_quant_scale"] = torch.linspace(0.5, 2.0, value.shape[1])
    return found


def tiny_flux1():
    """A FLUX.1 MODEL (16 latent channels, modulation per block), small."""
    transformer = comfy.ldm.flux.model.Flux(
        in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=64, hidden_size=256, mlp_ratio=4.0,
        num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
        guidance_embed=False, txt_ids_dims=[], device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    weights = {name: torch.zeros_like(value) for name, value in transformer.state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(weights)


def sdxl():
    """ComfyUI's own SDXL MODEL, without memory for its weights."""
    config = {
        "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
        "num_classes": "sequential", "adm_in_channels": 2816, "in_channels": 4, "model_channels": 320,
        "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4],
        "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 2048,
        "num_head_channels": 64, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "dtype": torch.float32,
        "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    model_config = comfy.supported_models.SDXL(config)
    model = model_config.get_model({}, "", device="meta")
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def brief_flux2(**options):
    """``tiny_flux2`` that reads 16 text tokens instead of 512, for tests of what surrounds the model."""
    return with_few_words(tiny_flux2(**options))


def with_few_words(model, words=16):
    """The MODEL, which from now on reads the last ``words`` of the text tokens alone; those before are padding."""
    whole = model.model.extra_conds

    def short(**arguments):
        conditions = whole(**arguments)
        conditions["c_crossattn"].cond = conditions["c_crossattn"].cond[:, -words:]
        return conditions

    model.model.extra_conds = short
    return model


def adapters_for(model, preset="all", rank=2, dtype=torch.float32, **kind):
    """Adapters on a MODEL, with what starts at zero drawn: other parameters' gradients would vanish."""
    layers, device = linears(model), model.load_device
    with training_mode():
        sites = {
            n: Site(layers[n].in_features, layers[n].out_features, rank, 4.0) for n in targets.select(layers, preset)
        }
        adapters = Adapters(sites, AdapterSettings(**kind), 0, device, lambda name: row_norms(layers[name], device))
        adapters.to(dtype)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapters.trainable():
                if not parameter.any():
                    parameter.copy_(torch.empty(parameter.shape, dtype=dtype).normal_(std=0.05, generator=generator))
    return adapters


def problem(batch=2, references=0, context=96, dtype=torch.float64, text=7):
    """(x_t, t, conditions, weights of the output in the loss) of a small batch, where ComfyUI computes.

    Core fills up texts of fewer than 512 tokens; ours does not for nano. So compare the two with ``text=LONGEST``.
    """
    g, device = torch.Generator().manual_seed(0), comfy.model_management.get_torch_device()
    x = torch.randn(batch, 128, 3, 2, generator=g, dtype=dtype)
    refs = tuple(torch.randn(1, 128, 2, 2, generator=g, dtype=dtype) for _ in range(references))
    embeds = [torch.randn(1, text, context, generator=g, dtype=dtype) for _ in range(batch)]
    weights = torch.randn(x.shape, generator=g, dtype=dtype)
    t, conditions = torch.linspace(0.3, 0.8, batch), [Condition(e, refs, guidance=4.0) for e in embeds]
    return x.to(device), t.to(device), conditions, weights.to(device)


def given_back(now, before) -> bool:
    """Whether a weight is the very one it was; on a device, which held no copy meanwhile, whether it is there again."""
    return now is before or (before.device.type != "cpu" and now.device == before.device)


def tiny_caches(items=5, repeats=1, seed=0, resolution=64):
    """(embeds, latents) for the tiny FLUX.2: not of the pictures, but as good to compute with; three shapes."""
    robot = DatasetSettings(
        ROOT / "datasets" / "robot", resolution=resolution, trigger="zbot", class_word="toy", repeats=repeats
    )
    whole = read_folder(robot)
    dataset = replace(whole, items=whole.items[:items])
    generator = torch.Generator().manual_seed(seed)
    embeds = {text: torch.randn(1, 7, 96, generator=generator) for text in dataset.texts()}
    latents = {view: torch.randn(view.latent_shape, generator=generator) for view in dataset.views()}
    return cache.EmbedCache(dataset, embeds), cache.LatentCache(dataset, latents)


def weights_of(model):
    """Copies of the weights of a MODEL's Linears, by name."""
    with torch.inference_mode(False):
        return {name: layer.weight.detach().clone() for name, layer in linears(model).items()}


def state_dict(adapters, dtype=torch.bfloat16):
    """The adapters as ComfyUI's LORA_MODEL; DoRA needs ``files.export``."""
    return write.tensors(adapters.parts(), "comfyui", dtype)


def inputs_of(trainer, batch, objective=None):
    """What the first step of a run trains on, with some of it sampled by the model itself where the settings say so."""
    drawn = trainer.draw(batch, 1)
    inputs = step_input(batch, drawn, range(len(batch)), trainer.device)
    return rolled_input(trainer.config.rollout, inputs, drawn.offsets, objective.predict) if objective else inputs


def loss_of(model, case):
    x, t, conditions, weights = case
    return (velocity(model, x, t, conditions) * weights).mean()


def by_diffusers(transformer, x, t, conditions):
    """Velocity of diffusers' FLUX.2 (from ``bench.as_diffusers``), called as diffusers' pipeline calls it.

    References are numbered 10, 20, ... on the first axis of the positions; text is padded on the left with zeros.
    """
    images = [x, *(torch.cat(r) for r in zip(*(c.references for c in conditions), strict=True))]
    tokens = torch.cat([image.flatten(2).transpose(1, 2) for image in images], 1)
    text = torch.cat([torch.nn.functional.pad(c.embeds, (0, 0, 512 - c.embeds.shape[1], 0)) for c in conditions])
    zero = torch.tensor([0])
    words = torch.cartesian_prod(zero, zero, zero, torch.arange(512))
    pixels = [
        torch.cartesian_prod(torch.tensor([10 * n]), *(torch.arange(side) for side in image.shape[2:]), zero)
        for n, image in enumerate(images)
    ]
    guidance = torch.tensor([c.guidance for c in conditions])
    with torch.no_grad():
        out = transformer(tokens, text, t, torch.cat(pixels), words, guidance, return_dict=False)[0]
    return out[:, : x[0, 0].numel()].transpose(1, 2).reshape(x.shape)


def options_for(comfy_folders) -> str:
    """ComfyUI's options for another process with this one's model folders, input and output."""
    models = comfy_folders / "models.yaml"  # --models-directory is newer than the oldest ComfyUI
    names = "".join(f"  {name}: {name}\n" for name in ("diffusion_models", "text_encoders", "vae", "loras"))
    models.write_text(f"tests:\n  base_path: {comfy_folders}\n  is_default: true\n{names}")
    folders = [f"--{kind}-directory {comfy_folders / kind}" for kind in ("input", "output")]
    return " ".join([f"--extra-model-paths-config {models}", f"--base-directory {comfy_folders}", *folders])


def chance(what) -> random.Random:
    """What draws the cases of a test: the same ones each time, others with ``FLUX2_TEST_SEED``. The seed is printed."""
    seed = int(os.environ.get("FLUX2_TEST_SEED", "0"))
    print(f"{what} drawn with FLUX2_TEST_SEED={seed}")
    return random.Random(seed)


def drawn(pairs, count):
    """A few of the pairs, see ``chance``."""
    return chance("parameters").sample(pairs, count)


def same(a, b) -> bool:
    """Whether two state dicts, of some tensors at least, are equal bit by bit."""
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
