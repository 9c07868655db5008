"""Published layouts of text encoders and autoencoder in small: what they encode is what stock ComfyUI's loaders do."""

from dataclasses import replace

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.llama
import comfy.utils
import pytest
import torch
from published_encoders import (
    Text,
    autoencoder,
    but_the_first_layer,
    every_matrix,
    headers_of,
    parts_of,
    shapes,
    tekken,
)  # fmt: skip
from safetensors.torch import save_file

from bench.encoding import encode_text
from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS, LONGEST
from flux2_train.host.loading import load

SMALL = Text(128, 28, 256, 1, 1, 151936)  # nano's sizes
WIDE = Text(5120, 30, 32, 1, 1, 512, qk_norms=False, final=False)  # Mistral is recognised by its width
KINDS = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32, "I64": torch.int64}


def drawn(entries, texts, shared=1 << 16):
    """Random contents; of large matrices a few numbers over and over, which is as good here."""
    generator, found = torch.Generator().manual_seed(0), {}
    values = torch.randn(shared, generator=generator)
    for number, (name, (kind, shape)) in enumerate(entries.items()):
        if name in texts:
            found[name] = torch.frombuffer(bytearray(texts[name]), dtype=torch.uint8)
        elif name.endswith("_scale"):
            found[name] = torch.tensor(0.7 + number % 5 / 10)
        elif not shape:
            found[name] = torch.zeros(shape, dtype=KINDS[kind])
        else:
            count = torch.Size(shape).numel()
            scale = torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.2
            tiled = values.roll(number).repeat(-(-count // shared))[:count].view(shape) * scale
            tiled = tiled.abs() + 0.5 if len(shape) == 1 else tiled
            found[name] = tiled.to(KINDS[kind])
    return found


def write(folder, entries, metadata, texts, parts=1):
    found = drawn(entries, texts)
    files = parts_of(entries, parts) if parts > 1 else {"text.safetensors": entries}
    for file, own in files.items():
        save_file({name: found[name].contiguous() for name in own}, folder / file, metadata)
    return sorted(folder / file for file in files)


def stock_nano(paths):
    """As core's ``load_clip`` does, with nano's sizes."""
    tensors = {}
    for path in paths:
        found, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
        tensors |= comfy.utils.convert_old_quants(found, model_prefix="", metadata=metadata)[0]
    tensors = {name.replace("model.language_model.", "model."): value for name, value in tensors.items()}
    kind = comfy.text_encoders.flux.klein_te(model_type="qwen3_4b", **comfy.sd.llama_detect([tensors]))
    target = type("Target", (), {"params": {}, "clip": kind, "tokenizer": comfy.text_encoders.flux.KleinTokenizer})
    options = {"qwen3_4b_model_config": nano.TEXT_ENCODER_CONFIG}
    return comfy.sd.CLIP(target, state_dict=[tensors], model_options=options)


@pytest.mark.parametrize("layout, parts", [
    ("bf16", 3),
    ("fp8mixed", 1),
    *(pytest.param(layout, parts, marks=pytest.mark.slow) for layout, parts in [
        ("bf16", 1), ("fp8mixed", 3), ("fp8 by tensor", 1), ("fp8 by tensor", 3), ("qwen3-vl names", 1),
    ]),
])  # fmt: skip
def test_a_qwen_encodes_as_by_the_stock_loader(layout, parts, tmp_path):
    how = {
        "bf16": {},
        "fp8mixed": {"which": but_the_first_layer},
        "fp8 by tensor": {"which": every_matrix, "by_tensor": True},
        "qwen3-vl names": {"renamed": lambda name: name.replace("model.", "model.language_model.", 1)},
    }[layout]
    entries, metadata, texts = headers_of(SMALL, **how)
    paths = write(tmp_path, entries, metadata, texts, parts)
    caption = " ".join(["cat"] * LONGEST)  # core fills up shorter ones
    with torch.inference_mode():
        clip = load.load_text_encoder(paths[-1], FLAVOURS["nano"])
        found = encode_text(clip, caption)
        expected = encode_text(stock_nano(paths), caption)
    assert found.isfinite().all() and found.std() > 0
    assert torch.equal(found, expected)


def test_the_head_that_writes_words_is_kept(tmp_path):
    """Qwen3 8B has one; core calls it by another name than the file."""
    entries, metadata, texts = headers_of(replace(SMALL, head=True))
    entries = {name: entry for name, entry in entries.items() if ".layers." not in name or ".layers.0." in name}
    paths = write(tmp_path, entries, metadata, texts)
    config = {**nano.TEXT_ENCODER_CONFIG, "num_hidden_layers": 1, "lm_head": True}
    row = replace(FLAVOURS["nano"], text_encoder_config=config)
    with torch.inference_mode():
        clip = load.load_text_encoder(paths[0], row)
        clip.patcher.model_state_dict()
        inner = clip.cond_stage_model.qwen3_4b.transformer
        assert torch.equal(inner.model.lm_head.weight, drawn(entries, texts)["lm_head.weight"])


@pytest.fixture
def narrow_mistral(monkeypatch):
    """Core builds Mistral in its true size only: here with as many layers of the same width, but narrow inside."""
    config = comfy.text_encoders.llama.Mistral3Small24BConfig
    small = {"vocab_size": 512, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    whole = config.__init__
    monkeypatch.setattr(config, "__init__", lambda self, **more: whole(self, **{**small, **more}))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("layout", ["bf16", "fp8"])
def test_mistral_encodes_as_by_the_stock_loader(layout, parts, tmp_path, narrow_mistral):
    entries, metadata, texts = headers_of(WIDE, every_matrix if layout == "fp8" else None, tekken=tekken())
    paths = write(tmp_path, entries, metadata, texts, parts)
    with torch.inference_mode():
        clip = load.load_text_encoder(paths[0], FLAVOURS["dev"])
        found = encode_text(clip, "a red cat")
        if parts > 1:  # which core takes one file of
            paths = write(tmp_path, entries, metadata, texts)
        core = comfy.sd.load_clip([str(paths[0])], clip_type=comfy.sd.CLIPType.FLUX2)
        expected = encode_text(core, "a red cat")
    assert found.shape[-1] == 3 * 5120 and found.isfinite().all() and found.std() > 0
    assert torch.equal(found, expected)


def test_a_text_encoder_of_another_model_is_refused(tmp_path):
    entries, metadata, texts = headers_of(SMALL)
    entries = {name.replace("model.layers", "model.blocks"): entry for name, entry in entries.items()}
    with pytest.raises(UserError, match=r"text.safetensors lacks \d+ weights, model.layers.0"):
        load.load_text_encoder(write(tmp_path, entries, metadata, texts)[0], FLAVOURS["nano"])


def test_the_table_is_nanos():
    """Whose names are Hugging Face's."""
    assert {name: tuple(value.shape) for name, value in nano.text_encoder().items()} == shapes(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bfl", "bfl, quant_conv inside", "diffusers"])
def test_the_autoencoder_is_the_stock_loaders(layout, tmp_path):
    """And, of diffusers' own file, diffusers' own: latents and picture."""
    path, picture = tmp_path / "vae.safetensors", torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(1))
    if layout == "diffusers":
        diffusers = pytest.importorskip("diffusers", minversion="0.36", reason="diffusers is not installed")
        torch.manual_seed(0)
        theirs = diffusers.AutoencoderKLFlux2().requires_grad_(False).eval()
        theirs.bn.running_mean.copy_(torch.randn(128) / 10), theirs.bn.running_var.copy_(torch.rand(128) + 0.5)
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
    else:
        save_file(drawn(autoencoder(layout != "bfl"), {}), path)
    with torch.inference_mode():
        vae = load.load_vae(path, FLAVOURS["klein-4b"])
        core = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
        latents, expected = vae.encode(picture), core.encode(picture)
        assert latents.shape == (1, 128, 4, 3)
        assert (latents - expected).norm() <= 1e-6 * expected.norm()
        assert (vae.decode(latents) - core.decode(latents)).abs().max() <= 1e-5
        if layout == "diffusers":
            mean = theirs.encode(2 * picture.movedim(-1, 1) - 1).latent_dist.mode()
            packed = torch.nn.functional.pixel_unshuffle(mean, 2)
            statistics = theirs.bn.running_mean.view(1, -1, 1, 1), theirs.bn.running_var.view(1, -1, 1, 1)
            wanted = (packed - statistics[0]) / (statistics[1] + theirs.config.batch_norm_eps).sqrt()
            assert (latents - wanted).norm() <= 1e-3 * wanted.norm()
