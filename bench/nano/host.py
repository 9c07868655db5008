"""ComfyUI's own classes at nano's sizes, on the CPU. The only file here that imports ComfyUI."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flux2_train.nano import sizes, textgen

ROOT = Path(__file__).resolve().parents[2]
PAD = 151643
DIT = dict(
    in_channels=128,
    out_channels=128,
    vec_in_dim=None,
    context_in_dim=3 * sizes.HIDDEN,
    hidden_size=256,
    mlp_ratio=3.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=6,
    axes_dim=[32] * 4,
    theta=2000,
    patch_size=1,
    qkv_bias=False,
    guidance_embed=False,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
)


@cache
def use_comfyui() -> None:
    """Make ComfyUI importable: COMFYUI_PATH, the ComfyUI this checkout sits in, or .comfyui."""
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui()


def load_flux2() -> tuple:
    """nano's MODEL, CLIP and VAE, as the node Load FLUX.2 gives them."""
    use_comfyui()
    from flux2_train.flavours import flavour
    from flux2_train.host.loading import load
    from flux2_train.settings.model import ModelSettings

    chosen = ModelSettings("nano")
    transformer, text_encoder, vae = load.locate_parts(chosen)
    with torch.inference_mode():  # as nodes run
        model, clip = load.load_model(transformer, chosen), load.load_clip(text_encoder, chosen)
        return model, clip, load.load_vae(vae, flavour("nano"))


@contextmanager
def training() -> Iterator[None]:
    """ComfyUI's training flag: without it the rotary embedding runs as an operation that has no gradient."""
    use_comfyui()
    import comfy.model_management

    before, comfy.model_management.in_training = comfy.model_management.in_training, True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def new_transformer() -> nn.Module:
    """ComfyUI's Flux with FLUX.2's traits, fp32, weights not initialised."""
    use_comfyui()
    import comfy.ldm.flux.model
    import comfy.ops

    return comfy.ldm.flux.model.Flux(
        image_model="flux2", dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **DIT
    )


def published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The module's weights by the names of FLUX.2's published files, where those of norms end in ``.scale``."""
    return {re.sub(r"_norm\.weight$", "_norm.scale", name): weight for name, weight in weights.items()}


def as_in_module(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's weights by the names of ComfyUI's module."""
    return {re.sub(r"_norm\.scale$", "_norm.weight", name): weight for name, weight in weights.items()}


@cache
def text_encoder():
    """comfy.sd.CLIP with the generated encoder."""
    use_comfyui()
    import comfy.sd
    import comfy.text_encoders.flux as flux

    class Target:
        clip = flux.klein_te(model_type="qwen3_4b")
        tokenizer = flux.KleinTokenizer
        params = {}

    clip = comfy.sd.CLIP(Target, model_options={"qwen3_4b_model_config": sizes.CONFIG})
    missing, unexpected = clip.cond_stage_model.load_sd(textgen.generate_text_encoder())
    if missing or unexpected:
        raise RuntimeError(f"Text encoder keys: missing {missing}, unexpected {unexpected}")
    return clip


@cache
def token_ids(caption: str) -> tuple[int, ...]:
    """Token ids of the caption in the chat template, without padding."""
    pairs = text_encoder().tokenize(caption)["qwen3_4b"][0]
    return tuple(int(pair[0]) for pair in pairs if pair[0] != PAD)


@torch.no_grad()
def encode(ids: torch.Tensor, positions: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Embeds (B, L, 384) of tokens (B, L) at the given positions (B, L); `real` (B, L) is 0 at padding.

    Equal to ComfyUI's own encoding, row by row, since padding is never attended to.
    """
    model = text_encoder().cond_stage_model.qwen3_4b.transformer.model
    _, layers = model(
        ids,
        attention_mask=real,
        position_ids=positions,
        intermediate_output=[9, 18, 27],
        final_layer_norm_intermediate=False,
        dtype=torch.float32,
    )
    return layers.movedim(1, 2).flatten(2)


def half_products():
    """A context: matrix products in bf16 where this processor has instructions for them, which elsewhere are slow."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


class OutOfPlaceAdd(TorchFunctionMode):
    """Turns `x += y` into `x = x + y`: ComfyUI's blocks add residuals in place, which breaks their gradients."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__iadd__, torch.Tensor.add_):
            func = torch.add
        return func(*args, **(kwargs or {}))


def attention(func, q, k, v, heads, mask=None, **kwargs):
    """PyTorch's attention in place of ComfyUI's choice for the CPU, which is slow to differentiate."""
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)
