"""What a LoRA file's keys and header say about who wrote it, and what is not read: named, never guessed or dropped."""

import json

import pytest
import torch
from lora_files import BLOCK, PROJ, H, numbers
from safetensors.torch import save_file
from support import tiny_flux2, weights_of

from flux2_train.adapters import dora, read
from flux2_train.adapters.header import Tensors
from flux2_train.errors import UserError
from flux2_train.host.lora import apply as lora


@pytest.fixture(scope="module")
def model():
    return tiny_flux2()


@pytest.fixture(scope="module")
def weights(model):
    return weights_of(model)


UNREAD = {
    "GLoRA": "a1.weight",
    "T-LoRA": "lambda_layer",
    "Tucker decomposition": "lokr_t2",
    "IA3": "on_input",
    "VeRA": "vera_lambda_d",
    "HRA": "hra_u",
    "peft's BOFT": "boft_R",
    "a whole new weight": "set_weight",
    "a new bias": "diff_b",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_kinds_that_are_not_read_are_named(model, kind):
    key = f"lycoris_{BLOCK.replace('.', '_')}_to_q.{UNREAD[kind]}"
    with pytest.raises(UserError, match=rf"This LoRA holds {kind} \({key}\)"):
        lora.read(model, {key: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"oft_blocks": torch.zeros(3, 16, 16)}, r"rotation of \(3, 16, 16\) does not fit"),
        ({"oft_blocks": torch.zeros(8, 16, 8)}, "does not fit"),
        ({"oft_blocks": torch.zeros(9, 8, 16, 16)}, "does not fit"),
        ({"oft_R.weight": torch.zeros(8, 119)}, "does not fit"),
        ({"oft_R.weight": torch.zeros(7, 120)}, "does not fit"),
        ({"rescale": torch.ones(H)}, "no OFT"),
        ({"diff": torch.zeros(H, H), "lokr_w1": torch.zeros(4, 4)}, "it has"),
        (
            {"lora_A.weight": torch.zeros(2, H), "lora_B.weight": torch.zeros(H, 2), "magnitude": torch.ones(77)},
            "77 rows",
        ),
        ({"oft_blocks": torch.zeros(8, 16, 16), "alpha": torch.ones(2)}, "damaged"),
    ],
)
def test_damaged_adapters_are_refused_by_layer(model, keys, words):
    tensors = {f"diffusion_model.{PROJ}.{key}": tensor for key, tensor in keys.items()}
    with pytest.raises(UserError, match=f"damaged at {PROJ}.*{words}|{words}.*"):
        lora.read(model, tensors)


WRITERS = [
    ("diffusion_model.", {}, False, "base", True),
    ("diffusion_model.", {"flux2_train.format": "comfyui"}, False, "base", False),
    ("diffusion_model.", {"flux2_train.version": "1"}, False, "base", False),
    ("diffusion_model.", {"ot_revision": "abc"}, False, "adapted", False),
    ("diffusion_model.", {}, True, "adapted", False),
    ("lora_unet_", {}, True, "adapted", False),
    ("lycoris_", {}, True, "adapted", False),
    ("", {}, True, "adapted", False),
]


@pytest.mark.parametrize(("prefix", "header", "alpha", "norm", "assumed"), WRITERS)
def test_dora_scale_goes_with_the_norm_that_its_writer_divides_by(model, weights, prefix, header, alpha, norm, assumed):
    torch.manual_seed(0)
    stem = prefix + (PROJ.replace(".", "_") if prefix.endswith("_") else PROJ)
    w, up, down = weights[PROJ].double(), numbers(H, 2), numbers(2, H, scale=0.1)
    m = w.norm(dim=1, keepdim=True) * 1.2
    keys = {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down, f"{stem}.dora_scale": m.float()}
    if alpha:
        keys[f"{stem}.alpha"] = torch.tensor(2.0)
    adapted = w + (up @ down).double()
    expected = m * adapted / (w if norm == "base" else adapted).norm(dim=1, keepdim=True)
    loaded = lora.read(model, Tensors(keys, header))
    found = w + dora.change(loaded.parts[PROJ], w.float()).double()
    assert (found - expected).norm() < 1e-5 * (expected - w).norm()
    assert bool(loaded.note) == assumed
    said = lora.describe(model, loaded, 1.0, lora.MERGED)
    assert ("as ComfyUI takes it" in said) == assumed


@pytest.mark.parametrize(
    ("config", "read_"),
    [
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": False}, True),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 7}, False),
        ({"use_cayley_neumann": False, "num_cayley_neumann_terms": 5}, False),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": True}, False),
        ({}, False),
        ({"peft_type": "VERA"}, False),
    ],
)
def test_pefts_oft_is_read_where_its_rotations_are_known(tmp_path, config, read_):
    stem = "base_model.model.transformer_blocks.0.attn.to_out.0"
    save_file({f"{stem}.oft_R.weight": torch.zeros(8, 120)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", "r": 8, **config}))
    if read_:
        assert f"{stem}.oft_R.weight" in read.load(tmp_path / "adapter_model.safetensors")
        return
    with pytest.raises(UserError, match="The peft folder of this LoRA holds '(OFT|VERA)'"):
        read.load(tmp_path / "adapter_model.safetensors")
