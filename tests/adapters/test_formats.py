"""LoRA files of every make: what is written is read back, and what others write means what they mean by it."""

import json
import re
from dataclasses import replace

import pytest
import torch
from made_parts import (
    KINDS,
    PROJ,
    QKV,
    SIZES,
    H,
    assert_same,
    dora,
    loha,
    lokr,
    lokr_whole,
    lora,
    numbers,
    parts_of,
    reread,
)
from safetensors.torch import save_file

from flux2_train.adapters import read, write
from flux2_train.adapters.dora import change
from flux2_train.adapters.parts import LowRank, Split
from flux2_train.errors import UserError


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("format", write.FORMATS)
def test_what_is_written_is_read_back_or_refused_by_name(make, format):
    of_base = {"of_base": write.divides_by_base(format)} if make is dora else {}
    parts = parts_of(lambda into, out: make(into, out, **of_base))
    refused = {"diffusers": KINDS[2:], "kohya": [dora], "peft": KINDS[3:]}.get(format, [])
    if make in refused:
        with pytest.raises(UserError, match=rf"'{format}' cannot carry the \w+ at double_blocks.0.img_attn.qkv"):
            write.tensors(parts, format)
        return
    assert_same(reread(write.tensors(parts, format, torch.float32)), parts)


@pytest.mark.parametrize("dtype", write.DTYPES)
def test_tensors_are_in_the_dtype_asked_for_but_magnitudes_stay_exact(dtype):
    parts = parts_of(dora)
    found = write.tensors(parts, "comfyui", write.DTYPES[dtype])
    assert {t.dtype for k, t in found.items() if "lora_" in k} == {write.DTYPES[dtype]}
    assert {t.dtype for k, t in found.items() if "dora" in k} == {torch.float32}
    rounded = {
        name: replace(part, down=once(part.down, dtype), up=once(part.up * part.scale, dtype), scale=1.0)
        for name, part in parts.items()
    }
    assert_same(reread(found), rounded)


def once(tensor, dtype):
    """Rounded to a file's precision, and nothing else."""
    return tensor.to(write.DTYPES[dtype]).float()


def test_values_that_a_dtype_cannot_hold_are_refused():
    parts = {PROJ: LowRank(torch.ones(1, H), torch.full((H, 1), 1e6))}
    write.tensors(parts, dtype=torch.bfloat16)
    with pytest.raises(UserError, match="txt_attn.proj.lora_B.weight holds values that torch.float16 cannot"):
        write.tensors(parts, dtype=torch.float16)


STEMS = {
    "ai-toolkit": "diffusion_model.single_blocks.1.linear2",
    "kohya": "lora_unet_single_blocks_1_linear2",
    "bare": "single_blocks.1.linear2",
    "peft on BFL's names": "base_model.model.single_blocks.1.linear2",
    "diffusers": "transformer.single_transformer_blocks.1.attn.to_out",
    "diffusers, bare": "single_transformer_blocks.1.attn.to_out",
    "peft on diffusers": "base_model.model.single_transformer_blocks.1.attn.to_out",
    "diffusion_model on diffusers": "diffusion_model.single_transformer_blocks.1.attn.to_out",
    "SimpleTuner's LyCORIS": "lycoris_single_transformer_blocks_1_attn_to_out",
    "OneTrainer": "lora_transformer_single_transformer_blocks_1_attn_to_out",
    "kohya on diffusers": "lora_unet_single_transformer_blocks_1_attn_to_out",
}
ENDS = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A", ".lora_B"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("ends", ENDS)
def test_every_way_to_write_a_lora(stem, ends):
    torch.manual_seed(0)
    down, up = numbers(3, 4 * H), numbers(H, 3)
    tensors = {STEMS[stem] + ends[0]: down, STEMS[stem] + ends[1]: up}
    found = reread(tensors)
    assert_same(found, {"single_blocks.1.linear2": LowRank(down, up)})
    with_alpha = reread({**tensors, STEMS[stem] + ".alpha": torch.tensor(6.0)})
    assert_same(with_alpha, {"single_blocks.1.linear2": LowRank(down, up, 2.0)})


@pytest.mark.parametrize("name", [n for n in SIZES if n != "img_in" and "adaLN" not in n])
def test_every_layer_is_found_by_its_diffusers_name(name):
    from flux2_train.adapters.names import Names, in_diffusers

    places = [Names(SIZES).find(f"transformer.{stem}") for stem in in_diffusers(name)[0]]
    assert {place.name for place in places} == {name}
    assert sum(place.count for place in places) == SIZES[name][1]
    assert [place.start for place in places] == [n * SIZES[name][1] // len(places) for n in range(len(places))]


def test_musubis_half_dotted_names():
    parts = parts_of(lora, [QKV])
    renamed = {
        k.replace("img_attn.qkv", "img_attn_qkv"): t for k, t in write.tensors(parts, dtype=torch.float32).items()
    }
    assert_same(reread(renamed), parts)


def split_qkv(make, names=("to_q", "to_k", "to_v")):
    torch.manual_seed(0)
    pieces = {n: make(H, H) for n in names}
    tensors = {}
    for n, piece in pieces.items():
        own = write.tensors({PROJ: piece}, "kohya", torch.float32)
        stem = f"lycoris_transformer_blocks_0_attn_{n}"
        tensors |= {k.replace("lora_unet_double_blocks_0_txt_attn_proj", stem): t for k, t in own.items()}
    return pieces, tensors


@pytest.mark.parametrize("make", [lora, loha, lokr, lokr_whole])
def test_split_qkv_becomes_one_part(make):
    pieces, tensors = split_qkv(make)
    part = reread(tensors)[QKV]
    torch.testing.assert_close(part.delta(), torch.cat([p.delta() for p in pieces.values()]))
    x = numbers(2, 5, H)
    torch.testing.assert_close(part(x), x @ part.delta().T, rtol=1e-4, atol=1e-4)
    assert isinstance(part, Split) == (make in (lokr, lokr_whole))
    if make is lora:
        assert part.down.shape == (9, H) and part.up.shape == (3 * H, 9)


@pytest.mark.parametrize("make", [lora, loha, lokr])
def test_a_missing_third_is_zero(make):
    pieces, tensors = split_qkv(make, ("to_q", "to_v"))
    expected = torch.cat([pieces["to_q"].delta(), torch.zeros(H, H), pieces["to_v"].delta()])
    torch.testing.assert_close(reread(tensors)[QKV].delta(), expected)


def test_a_lora_written_in_three_comes_back_at_its_own_rank():
    parts = parts_of(lora, [QKV])
    found = reread(write.tensors(parts, "peft", torch.float32))
    assert found[QKV].down.shape == (3, H)


def test_diffusers_swaps_the_halves_of_the_last_modulation():
    name = "final_layer.adaLN_modulation.1"
    part = lora(H, 2 * H)
    tensors = {
        "transformer.norm_out.linear.lora_A.weight": part.down,
        "transformer.norm_out.linear.lora_B.weight": part.up,
    }
    shift, scale = (part.up @ part.down).chunk(2)
    torch.testing.assert_close(reread(tensors)[name].delta(), torch.cat([scale, shift]))


def file_with(tmp_path, metadata=None, name="x.safetensors", make=lora, names=(PROJ,)):
    parts = parts_of(lambda into, out: make(into, out, scale=1.0) if make is lora else make(into, out), names)
    save_file(write.tensors(parts, "peft", torch.float32), tmp_path / name, metadata or {})
    return parts, tmp_path / name


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 3, "lora_alpha": 3}, 1.0),
        ({"r": 3, "lora_alpha": 12}, 4.0),
        ({"r": 3, "lora_alpha": 12, "use_rslora": True}, 12 / 3**0.5),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"attn.to_add_out": 3}, "alpha_pattern": {"to_add_out": 6}}, 2.0),
        ({"r": 3, "lora_alpha": 3, "alpha_pattern": {r"^transformer_blocks\.0\.attn\.to_add_out$": 6}}, 2.0),
        ({"r": 3, "lora_alpha": 3, "alpha_pattern": {r"transformer_blocks\.\d+\.attn\.(to_q|to_add_out)": 6}}, 2.0),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {r".*\.to_add_out": 3}}, 8 / 3),
        ({"r": 3, "lora_alpha": 3, "alpha_pattern": {r"^attn\.to_add_out": 6}}, 1.0),
    ],
)
def test_alpha_that_stands_in_the_header_only_is_applied(tmp_path, config, scale):
    prefixed = {f"transformer.{k}": v for k, v in config.items()}
    parts, path = file_with(tmp_path, {"lora_adapter_metadata": json.dumps(prefixed)})
    assert_same(reread(read.load(path)), {PROJ: LowRank(parts[PROJ].down, parts[PROJ].up, scale)})


def test_alpha_in_the_file_wins_over_the_header(tmp_path):
    parts, path = file_with(tmp_path)
    tensors = read.load(path) | {"base_model.model.transformer_blocks.0.attn.to_add_out.alpha": torch.tensor(6.0)}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"transformer.r": 3, "transformer.lora_alpha": 300})})
    assert_same(reread(read.load(path)), {PROJ: LowRank(parts[PROJ].down, parts[PROJ].up, 2.0)})


def test_a_header_that_cannot_be_read_is_an_error(tmp_path):
    _, path = file_with(tmp_path, {"lora_adapter_metadata": "{"})
    with pytest.raises(UserError, match="the scale of this LoRA is unknown"):
        read.load(path)
    for pattern in (r"\w+", "[ab]", "(?=a)b", "a{2}"):
        patterns = {"transformer.r": 3, "transformer.alpha_pattern": {pattern: 5}}
        _, path = file_with(tmp_path, {"lora_adapter_metadata": json.dumps(patterns)})
        with pytest.raises(UserError, match=re.escape(repr(pattern)) + ", which is not read here"):
            read.load(path)


def test_pefts_own_folder_is_read_with_its_config(tmp_path):
    parts, path = file_with(tmp_path, name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    assert_same(reread(read.load(path)), {PROJ: LowRank(parts[PROJ].down, parts[PROJ].up, 2.0)})


@pytest.mark.parametrize("factors", ["whole", "of a product"])
def test_pefts_lokr_scales_whole_factors_too(tmp_path, factors):
    """peft scales every LoKr by alpha / r; LyCORIS and ComfyUI leave those alone whose factors are both whole."""
    part = (lokr_whole if factors == "whole" else lokr)(H, H)
    tensors = write.tensors({PROJ: part}, "comfyui", torch.float32)
    path = tmp_path / "adapter_model.safetensors"
    stem = "base_model.model.transformer_blocks.0.attn.to_add_out"
    renamed = {k.replace(f"diffusion_model.{PROJ}", stem): t for k, t in tensors.items()}
    save_file({k: t for k, t in renamed.items() if not k.endswith(".alpha")}, path)  # which peft does not write
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 8, "alpha": 4}))
    torch.testing.assert_close(reread(read.load(path))[PROJ].delta(), part.delta() / 2)


def test_keys_that_mean_nothing_are_listed_and_refused_by_name():
    tensors = write.tensors(parts_of(lora, [PROJ]))
    odd = {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0), "something": torch.zeros(2)}
    parts, unmatched = read.read(tensors | odd, SIZES, "tiny")
    assert set(parts) == {PROJ} and set(unmatched) == set(odd)
    with pytest.raises(UserError, match="2 of 4 keys .* match nothing in tiny .lora_te_.*, something"):
        read.require_matched(unmatched, 4, "tiny")
    with pytest.raises(UserError, match="no LoRA keys"):
        read.require_matched([], 0, "tiny")


def test_damaged_files_are_refused_by_layer():
    whole = write.tensors(parts_of(lora, [PROJ]), dtype=torch.float32)
    down, up = sorted(whole)
    for damaged, what in (
        ({down: whole[down]}, "up"),
        ({down: whole[down], up: numbers(H, 4)}, r"\(128, 4\) and \(3, 128\)"),
        ({**whole, f"diffusion_model.{PROJ}.alpha": torch.tensor(float("nan"))}, "alpha is nan"),
        ({**whole, f"diffusion_model.{PROJ}.lokr_w1": numbers(2, 2)}, "it has"),
        ({f"diffusion_model.{PROJ}.alpha": torch.tensor(1.0)}, "alpha only"),
    ):
        with pytest.raises(UserError, match=f"damaged at {PROJ}: .*{what}"):
            read.read(damaged, SIZES, "tiny")
    twice = {**whole, f"lora_unet_{PROJ.replace('.', '_')}.lora_down.weight": whole[down]}
    with pytest.raises(UserError, match=f"down of {PROJ} twice"):
        read.read(twice, SIZES, "tiny")


def test_whole_and_split_at_once_is_refused():
    _, tensors = split_qkv(lora, ("to_k",))
    with pytest.raises(UserError, match=f"{QKV} both whole and in parts"):
        read.read(tensors | write.tensors(parts_of(lora, [QKV])), SIZES, "tiny")


def test_dora_over_inputs_is_read_as_such():
    """ComfyUI tells the two apart by the shape and, over inputs, divides by the adapted weight's norm."""
    tensors, weight = write.tensors(parts_of(dora, [QKV]), dtype=torch.float32), numbers(3 * H, H)
    scale = tensors[f"diffusion_model.{QKV}.dora_scale"] = numbers(1, H)
    up, down = (tensors[f"diffusion_model.{QKV}.lora_{x}.weight"] for x in "BA")
    adapted = weight + up @ down
    expected = scale * adapted / adapted.square().sum(0, keepdim=True).sqrt()
    torch.testing.assert_close(weight + change(reread(tensors)[QKV], weight), expected)
    tensors[f"diffusion_model.{QKV}.dora_scale"] = numbers(1, 5)
    with pytest.raises(UserError, match="scales 5 rows or columns of 384 and 128"):
        read.read(tensors, SIZES, "tiny")


def test_another_flavours_lora_is_refused_by_size():
    with pytest.raises(UserError, match=f"another FLUX.2 flavour: {PROJ} is 128x128 in tiny, the LoRA's is 256x128"):
        read.read(write.tensors({PROJ: lora(H, 2 * H)}), SIZES, "tiny")


def test_files_that_are_no_loras_are_not_loaded(tmp_path, monkeypatch):
    (tmp_path / "b.pt").write_bytes(b"pickle")
    with pytest.raises(UserError, match="b.pt is not a safetensors file"):
        read.load(tmp_path / "b.pt")
    _, path = file_with(tmp_path)
    monkeypatch.setattr(read, "MOST_TENSORS", 1)
    with pytest.raises(UserError, match="2 tensors: that is no LoRA"):
        read.load(path)
    monkeypatch.setattr(read, "LARGEST_FILE", 10)
    with pytest.raises(UserError, match="a whole model"):
        read.load(path)
