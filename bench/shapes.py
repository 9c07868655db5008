"""The names and shapes of a FLUX.2 transformer's weights, as ComfyUI builds it."""

from __future__ import annotations

import comfy.ldm.flux.model
import comfy.ops


def flux2_shapes(
    hidden: int, double: int, single: int, context: int, guidance: bool = False
) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight. ``double`` and ``single`` count blocks, ``context`` is the width of the text."""
    transformer = comfy.ldm.flux.model.Flux(
        in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=context, hidden_size=hidden, mlp_ratio=3.0,
        num_heads=hidden // 128, depth=double, depth_single_blocks=single, axes_dim=[32] * 4, theta=2000, patch_size=1,
        qkv_bias=False, guidance_embed=guidance, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True,
        ops_bias=False, device="meta", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return [(name, tuple(value.shape)) for name, value in transformer.state_dict().items()]
