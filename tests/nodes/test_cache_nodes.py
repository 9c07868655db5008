"""Cache Embeds and Cache Latents, run as ComfyUI runs them: every widget acts, progress is told, memory given back."""

import logging
import zlib
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy_api.latest import io
from pictures import picture

from bench.encoding import encode_text
from flux2_train.host.loading.files import cache_folder


@pytest.fixture(scope="module")
def nodes(pack):
    """The node classes by id, prepared as ComfyUI's executor prepares them."""
    return SimpleNamespace(**{
        node.GET_SCHEMA().node_id.removeprefix("Flux2"): node.PREPARE_CLASS_CLONE(
            {"hidden_inputs": {io.Hidden.unique_id: "7"}}
        )
        for node in pack.NODES
    })  # fmt: skip


@pytest.fixture
def dataset(nodes, tmp_path):
    """Three pictures that no other test has, one of them large enough for tiles."""
    own = zlib.crc32(tmp_path.name.encode()) % 2**16
    for number, side in enumerate((64, 64, 256)):
        colour, caption = (number, own >> 8, own & 255), f"[trigger] {number} {tmp_path.name}"
        picture(tmp_path / "data" / f"{number}.png", (side, side), colour, caption)
    folder = {"folder": str(tmp_path / "data"), "captions": "text file", "prompt": "", "resolution": 256, "repeats": 1}
    return nodes.DatasetFolder.EXECUTE_NORMALIZED(**folder, trigger="zbot", class_word="").args[0]


@pytest.fixture
def caching(nodes, nano, dataset):
    """``caching("Embeds" or "Latents", widgets)``: what the node gives, encoding anew what other tests have not."""

    def run(what, **widgets):
        node = getattr(nodes, f"Cache{what}")
        untouched = {i.id: i.default for i in node.GET_SCHEMA().inputs if hasattr(i, "default")}
        wired = {"clip": nano.clip} if what == "Embeds" else {"vae": nano.vae}
        with torch.inference_mode():
            return node.EXECUTE_NORMALIZED(**{**untouched, "dataset": dataset, **wired, **widgets}).args[0]

    return run


def loaded(patcher) -> bool:
    return any(m.model is patcher for m in comfy.model_management.current_loaded_models)


def test_memory_is_free_before_the_transformer_loads(caching, nano):
    embeds, latents = caching("Embeds"), caching("Latents")
    assert not loaded(nano.clip.patcher) and not loaded(nano.vae.patcher)
    assert set(embeds.embeds) == set(embeds.dataset.texts())
    assert set(latents.latents) == set(latents.dataset.views())


@pytest.mark.long
def test_prompts_and_negatives_of_previews_are_encoded_too(caching, nano):

    embeds = caching("Embeds", prompts="a preview\n\n  blurry, bad  \n")
    assert set(embeds.embeds) - set(embeds.dataset.texts()) == {"a preview", "blurry, bad"}
    with torch.inference_mode():
        assert torch.equal(embeds.embeds["blurry, bad"], encode_text(nano.clip, "blurry, bad"))


def test_a_caption_that_other_pipelines_cut_is_named_on_the_node_and_logged(nodes, nano, tmp_path, caplog):
    picture(tmp_path / "fox.png", caption=" ".join(["fox"] * 600))
    folder = {"folder": str(tmp_path), "captions": "text file", "prompt": "", "resolution": 64, "repeats": 1}
    dataset = nodes.DatasetFolder.EXECUTE_NORMALIZED(**folder, trigger="", class_word="").args[0]
    with torch.inference_mode():
        (text,) = nodes.CacheEmbeds.EXECUTE_NORMALIZED(clip=nano.clip, dataset=dataset).ui["flux2_text"]
    assert "warning: fox.txt has 6" in text and "cut at 512" in text
    assert any(line.startswith("fox.txt has 6") for line in caplog.messages)


@pytest.mark.parametrize("what", ["Embeds", "Latents"])
def test_the_cache_lies_where_the_user_wants_and_stays_as_small(caching, what):
    stored = caching(what, store="output folder")
    values = stored.embeds if what == "Embeds" else stored.latents
    assert values.store.folder == cache_folder("output folder") != cache_folder()
    kept = values.store.sizes().entries
    small = caching(what, store="output folder", limit_gb=1e-9, **({"prompts": "more"} if what == "Embeds" else {}))
    left = (small.embeds if what == "Embeds" else small.latents).store.sizes().entries
    assert left == len(set(small.embeds if what == "Embeds" else small.latents)) and kept >= 3


def test_latents_in_batches_in_tiles_and_in_bf16(caching):
    plain = caching("Latents").latents
    views = list(plain)
    batched = caching("Latents", store="output folder", batch=2).latents
    assert all(torch.allclose(plain[v], batched[v], atol=1e-5) for v in views)
    for widgets in ({"tile": 128}, {"vae_precision": "bf16"}):
        other = caching("Latents", **widgets).latents
        assert any(not torch.equal(plain[v], other[v]) for v in views)
        assert all((plain[v] - other[v]).abs().max() < 0.5 * plain[v].std() + 0.2 for v in views)


def test_batch_is_how_many_captions_are_encoded_at_a_time(caching, nano, monkeypatch):
    import comfy.sd

    real, sizes = comfy.sd.CLIP.encode_from_tokens_scheduled, []

    def counting(clip, tokens, *args, **kwargs):
        sizes.append(max(map(len, tokens.values())))
        return real(clip, tokens, *args, **kwargs)

    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens_scheduled", counting)
    embeds = caching("Embeds", batch=3)
    assert sizes[0] == 3 and sum(sizes[1:]) <= 1  # the three captions, and no caption where no test did that before
    assert embeds.settings.batch == 3


def test_items_rate_and_time_left_are_told_and_an_interrupt_keeps_what_is_done(caching, caplog, monkeypatch, nano):
    """Cancelled as by ComfyUI's button, at a moment the bar does not pass on."""
    progress, encode = [], nano.vae.encode

    def cancelled(image):
        latents = encode(image)
        comfy.model_management.interrupt_current_processing()
        return latents

    monkeypatch.setattr(
        "comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, preview, **_: progress.append((value, total))
    )
    with monkeypatch.context() as patched, pytest.raises(comfy.model_management.InterruptProcessingException):
        patched.setattr(nano.vae, "encode", cancelled)
        caching("Latents")
    assert progress == [(0, 3)]
    with caplog.at_level(logging.INFO):
        caching("Latents")
    assert progress[1] == (0, 2) and progress[-1] == (2, 2)
    assert any("2 of 2 images, " in line and " per second, 0:00 left" in line for line in caplog.messages)


def test_another_option_node_in_the_place_of_validation_is_refused_by_name(nodes, caching):
    with pytest.raises(
        ValueError, match="Memory is wired into 'validation' of Cache Embeds, where only the node Valid"
    ):
        caching("Embeds", validation=nodes.Memory.EXECUTE_NORMALIZED().args[0])
    with pytest.raises(ValueError, match="'validation' of Cache Embeds takes an option node, but a str is wired in"):
        caching("Embeds", validation="a prompt")
