"""Cached text and images are exactly what ComfyUI's own encoders give, for every flavour's kind of encoder."""

import comfy.sd
import comfy.text_encoders.flux
import pytest
import torch
import transformers
from pictures import picture, read

from bench.encoding import encode_image, encode_text
from flux2_train.data.store import Store
from flux2_train.errors import UserError
from flux2_train.host.encoding import encode
from flux2_train.host.system import memory
from flux2_train.runs import encoding
from flux2_train.settings.caches import LatentSettings

TEXTS = ["a cat", "a dog", "a small red house on a hill", "", "a fox"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def built(model, tokenizer, options, tokenizer_data=None):
    """ComfyUI's CLIP of that kind with random weights."""

    class Target:
        params: dict = {}
        clip = model

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(Target, model_options=options, tokenizer_data=tokenizer_data or {})
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for weight in clip.cond_stage_model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return clip


def klein(size: str, tokenizer):
    options = {f"{size}_model_config": {**SMALL, "num_hidden_layers": 28}}
    return built(comfy.text_encoders.flux.klein_te(model_type=size), tokenizer, options)


def dev():
    if int(transformers.__version__.split(".")[0]) > 4:
        pytest.skip("transformers 5 cannot build Mistral's tokenizer in this ComfyUI")
    options = {"mistral3_24b_model_config": {**SMALL, "num_hidden_layers": 31, "vocab_size": 1300}}
    return built(comfy.text_encoders.flux.flux2_te(), comfy.text_encoders.flux.Flux2Tokenizer, options,
                 {"tekken_model": tekken()})  # fmt: skip


def tekken() -> torch.Tensor:
    """A tokenizer as dev's text encoder file carries one, that knows single bytes only."""
    import base64
    import json

    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "<pad>"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)]
    known = [{"rank": i, "token_str": special[i] if i < len(special) else f"<s{i}>"} for i in range(1000)]
    data = {
        "config": {"default_vocab_size": 1256, "default_num_special_tokens": 1000},
        "special_tokens": known,
        "vocab": vocab,
    }
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


ENCODERS = {
    "nano": None,
    "klein-4b": lambda: klein("qwen3_4b", comfy.text_encoders.flux.KleinTokenizer),
    "klein-9b": lambda: klein("qwen3_8b", comfy.text_encoders.flux.KleinTokenizer8B),
    "dev": dev,
}


@pytest.mark.long
@pytest.mark.parametrize("flavour", ENCODERS)
def test_the_store_gives_the_very_tensor_the_sampler_would_get(flavour, nano, tmp_path):
    store = Store(tmp_path)
    with torch.inference_mode():
        clip = nano.clip if flavour == "nano" else ENCODERS[flavour]()
        encoder, keys = encode.TextEncoder(clip), set()
        for group in encoder.batches(TEXTS, most=2):
            for text, value in zip(group, encoder(group), strict=True):
                store.write(encoder.key(text), value)
        for text in TEXTS:
            expected = encode_text(clip, text)
            read = store.read(encoder.key(text))
            assert read.dtype == expected.dtype and read.shape == expected.shape
            assert torch.equal(read, expected) or (read - expected).abs().max() <= 1e-6 * expected.abs().max(), text
            keys.add(encoder.key(text))
        assert len(keys) == len(TEXTS)
        if flavour == "dev":  # nothing but the text's own tokens: the sampler pads later
            assert {store.read(encoder.key(t)).shape[1] for t in TEXTS} == {len(_tokens(clip, t)) for t in TEXTS}


def _tokens(clip, text):
    (sections,) = clip.tokenize(text).values()
    return sections[0]


def test_only_texts_of_equal_length_are_batched():
    with torch.inference_mode():
        encoder = encode.TextEncoder(dev())
        groups = list(encoder.batches(TEXTS, most=2))
    assert sorted(map(sorted, groups)) == sorted([[""], ["a cat", "a dog"], ["a fox"], ["a small red house on a hill"]])


def test_a_bf16_encoders_embeds_take_half_the_room(nano, tmp_path):
    store = Store(tmp_path)
    value = torch.randn(1, 40, 96).bfloat16().float()  # computed in bf16, given as fp32
    store.write("ab" + "0" * 30, value)
    assert store.path("ab" + "0" * 30).stat().st_size < 40 * 96 * 2 + 300


def test_hooks_on_a_clip_are_refused(nano):
    clip = nano.clip.clone()
    clip.patcher.forced_hooks = object()
    with pytest.raises(UserError, match="This CLIP carries hooks"):
        encode.TextEncoder(clip)


def test_encoders_leave_memory(nano):
    import comfy.model_management

    with torch.inference_mode():
        encode_text(nano.clip, "x")
        assert any(m.model is nano.clip.patcher for m in comfy.model_management.current_loaded_models)
        memory.unload(nano.clip.patcher)
    assert not any(m.model is nano.clip.patcher for m in comfy.model_management.current_loaded_models)


def test_another_precision_leaves_the_graphs_vae_alone(nano):
    image = torch.rand(1, 64, 64, 3)
    with torch.inference_mode():
        before = encode_image(nano.vae, image)
        low = encode.ImageEncoder(nano.vae, "bf16")
        assert low.vae.vae_dtype == torch.bfloat16 and nano.vae.vae_dtype == torch.float32
        difference = (low(image) - before).abs().max()
        assert 0 < difference < 0.2
        assert torch.equal(encode_image(nano.vae, image), before)
        assert torch.equal(encode.ImageEncoder(nano.vae, "fp32")(image), before)


def tiny_autoencoder(dtype=torch.float32):
    """ComfyUI's own AutoencoderKL as FLUX.2's is, but narrow."""
    config = {"embed_dim": 32, "ddconfig": {
        "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
    }}  # fmt: skip
    from comfy.ldm.models.autoencoder import AutoencoderKL

    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.rand(v.shape, generator=generator) + 0.5 if k.startswith("bn.running")
        else torch.randn(v.shape, generator=generator) * 0.05 if v.is_floating_point() else v
        for k, v in AutoencoderKL(**config).state_dict().items()
    }  # fmt: skip
    vae = comfy.sd.VAE(sd=state, config={"params": config}, dtype=dtype)
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    return vae, state


def test_statistics_stay_fp32_in_a_bf16_vae():
    """Latents of a bf16 VAE, normalised in fp32, from the encoder's own output and the file's statistics."""
    with torch.inference_mode():
        vae, state = tiny_autoencoder(torch.bfloat16)
        setattr(vae, encode.STATISTICS, (state["bn.running_mean"], state["bn.running_var"]))
        image = torch.rand(1, 64, 48, 3)
        module, norm = vae.first_stage_model, vae.first_stage_model.bn
        ours = encode.ImageEncoder(vae)(image)
        assert module.bn is norm
        module.bn = None
        z = module.encode((image.movedim(-1, 1) * 2 - 1).bfloat16()).float()
        module.bn = norm
        b, c, h, w = z.shape
        packed = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        mean, var = (state[f"bn.running_{n}"].view(1, -1, 1, 1) for n in ("mean", "var"))
        assert torch.allclose(ours, (packed - mean) / torch.sqrt(var + 1e-4), atol=1e-6)
        rounded = encode_image(vae, image)
        assert not torch.equal(ours, rounded) and (ours - rounded).abs().max() < 0.1


def test_latents_are_the_mean_of_the_posterior():
    with torch.inference_mode():
        vae, _ = tiny_autoencoder()
        image = torch.rand(1, 64, 48, 3)
        encoder = encode.ImageEncoder(vae)
        assert torch.equal(encoder(image), encoder(image)) and torch.equal(encoder(image), encode_image(vae, image))


def test_tiles_that_cannot_overlap_are_refused(nano):
    with pytest.raises(UserError, match="tile is 64; at least 128"):
        encode.ImageEncoder(nano.vae, tile=64)


def runs_out_of_memory_once(vae):
    real, first = vae.first_stage_model.encode, []

    def encode_later(pixels):
        if not first:
            first.append(True)
            raise torch.OutOfMemoryError("no memory")
        return real(pixels)

    vae.first_stage_model.encode = encode_later


def test_images_that_had_to_be_encoded_in_tiles_are_told(tmp_path):
    """By the node and by the terminal, which both say what this returns."""
    picture(tmp_path / "a.png", (192, 192))
    picture(tmp_path / "b.png", (192, 192), "blue")
    dataset, settings = read(tmp_path, resolution=192), LatentSettings()
    with torch.inference_mode():
        vae, _ = tiny_autoencoder()
        runs_out_of_memory_once(vae)
        first, again = (encoding.encode_images(vae, dataset, settings, lambda done, total: None) for _ in range(2))
    assert first.warnings == ("memory ran out, so 1 were encoded in tiles; lower batch or set tile",)
    assert (first.made.encoded, again.made.encoded, again.warnings) == (2, 0, ())
    assert set(first.cache.latents) == set(dataset.views()) and first.cache.settings == settings


def test_tiles_on_demand_and_when_memory_runs_out():
    with torch.inference_mode():
        vae, _ = tiny_autoencoder()
        image = torch.rand(1, 192, 192, 3)
        whole = encode.ImageEncoder(vae)
        expected = whole(image)
        tiled = encode.ImageEncoder(vae, tile=128)(image)
        assert tiled.shape == expected.shape and not torch.equal(tiled, expected)
        assert whole.in_tiles == 0
        runs_out_of_memory_once(vae)
        assert whole(image).shape == expected.shape and whole.in_tiles == 1
