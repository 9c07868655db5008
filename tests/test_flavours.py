"""The flavour table, and the adapters each preset puts on each flavour."""

import comfy.ldm.flux.model
import comfy.ops
import pytest

from flux2_train.adapters import targets
from flux2_train.errors import UserError
from flux2_train.flavours import BASE, DISTILLED, FLAVOURS, by_sizes, flavour


def linear_names(row) -> list[str]:
    """Names of all Linears in ComfyUI's own Flux of that size, built without memory."""
    transformer = comfy.ldm.flux.model.Flux(
        in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=row.context, hidden_size=row.hidden,
        mlp_ratio=3.0, num_heads=row.hidden // 128, depth=row.double_blocks, depth_single_blocks=row.single_blocks,
        axes_dim=[32] * 4, theta=2000, patch_size=1, qkv_bias=False, guidance_embed=row.embedded_guidance,
        txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False,
        device="meta", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return [name for name, module in transformer.named_modules() if hasattr(module, "in_features")]


@pytest.mark.parametrize("name, preset, count", [
    ("dev", "all", 160), ("klein-9b", "all", 112), ("klein-4b", "all", 80), ("nano", "all", 28),
    ("dev", "attention", 128), ("klein-9b", "attention", 80), ("klein-4b", "attention", 60),
    ("dev", "mlp", 128), ("klein-9b", "mlp", 80), ("klein-4b", "mlp", 60),
    ("dev", "tiny", 64), ("klein-9b", "tiny", 40), ("klein-4b", "tiny", 30),
])  # fmt: skip
def test_adapters_per_flavour_and_preset(name, preset, count):
    assert len(targets.select(linear_names(FLAVOURS[name]), preset)) == count


def test_presets_refuse_what_they_do_not_know():
    with pytest.raises(UserError, match="Unknown targets 'some'; choose one of all, attention, mlp, tiny"):
        targets.select(["double_blocks.0.img_attn.qkv"], "some")
    with pytest.raises(UserError, match="found no layer"):
        targets.select(["blocks.0.attn"], "all")


@pytest.mark.parametrize("name, file, variant", [
    ("klein-9b", "flux-2-klein-base-9b-fp8.safetensors", BASE),
    ("klein-9b", "flux-2-klein-9b.safetensors", DISTILLED),
    ("klein-9b", "my_klein_BASE_merge.safetensors", BASE),
    ("klein-9b", "my_merge.safetensors", None),
    ("dev", "my_merge.safetensors", BASE),
])  # fmt: skip
def test_variant_by_file_name(name, file, variant):
    assert FLAVOURS[name].variant_of(file) == variant


def test_base_files_come_first_and_variants_are_real():
    row = flavour("klein-4b")
    assert row.transformer_files("auto")[0].name == "flux-2-klein-base-4b.safetensors"
    assert row.transformer_files(DISTILLED)[0].name == "flux-2-klein-4b.safetensors"
    with pytest.raises(UserError, match="dev has no distilled variant"):
        flavour("dev").transformer_files(DISTILLED)
    with pytest.raises(UserError, match="Unknown flavour 'klein-2b'"):
        flavour("klein-2b")


def test_sizes_tell_flavours_apart():
    assert len({row.sizes for row in FLAVOURS.values()}) == len(FLAVOURS)
    assert by_sizes((4096, 8, 24, 12288)).name == "klein-9b"
    assert by_sizes((1, 1, 1, 1)) is None
