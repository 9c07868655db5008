"""Text encoders that stream their layers give the very bits of resident ones, on a device that is late."""

import comfy.model_management
import comfy.text_encoders.flux
import pytest
import torch
from delayed import Late
from safetensors.torch import save_file
from support import given_back, require_precision
from test_encode import dev, klein

from bench.encoding import encode_text
from flux2_train import nano as shipped
from flux2_train.data.cache import cache_embeds
from flux2_train.data.store import Store
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed.streamed import SOURCE
from flux2_train.host.encoding import encode, streamed_text
from flux2_train.host.loading import load
from flux2_train.settings.caches import EmbedSettings

TEXTS = ["a red cat", "a blue house in a meadow"]


@pytest.fixture(autouse=True)
def _as_a_node():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def own_nano(tmp_path_factory):
    """``own_nano(precision)``: nano's text encoder in a CLIP that no other test has."""
    path = tmp_path_factory.mktemp("text encoder") / "text.safetensors"
    save_file(shipped.text_encoder(), path)

    def load_it(precision="as in file"):
        require_precision(precision)
        return load.load_text_encoder(path, FLAVOURS["nano"], precision)

    return load_it


def leftovers(clip):
    modules = clip.cond_stage_model.modules()
    return [m for m in modules if SOURCE in m.__dict__ or "forward" in m.__dict__]


def weights(clip):
    return dict(clip.cond_stage_model.named_parameters())


def require_same_bits(clip):
    expected = [encode_text(clip, text) for text in TEXTS]
    before, late = weights(clip), Late()
    with streamed_text.streamed(clip, late) as (own, ring):
        layers = len({name.rpartition(".layers.")[2].split(".")[0] for name in ring.where})
        assert layers == len(ring.groups) > len(ring.slots) == 2
        found = [encode_text(own, text) for text in TEXTS]
        assert late.copies >= len(TEXTS) * (layers - 2) and ring.missed <= 2  # the next was on its way, but at first
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not leftovers(clip) and all(given_back(w, before[name]) for name, w in weights(clip).items())
    assert torch.equal(encode_text(clip, TEXTS[0]), expected[0])


@pytest.mark.drawn(cases=3)
@pytest.mark.long
@pytest.mark.parametrize("precision", ["as in file", "fp8 (e4m3)", "fp8 (scaled)", "mxfp8", "int8", "nvfp4", "int4"])
def test_every_precision(precision, own_nano):
    require_same_bits(own_nano(precision))


@pytest.mark.long
@pytest.mark.parametrize("build", [lambda: klein("qwen3_4b", comfy.text_encoders.flux.KleinTokenizer), dev],
                         ids=["klein", "dev"])  # fmt: skip
def test_every_kind_of_encoder(build):
    require_same_bits(build())


@pytest.mark.long
def test_with_a_lora_merged_into_it(own_nano):
    clip = own_nano()
    plain = encode_text(clip, TEXTS[0])
    name, weight = next((n, w) for n, w in clip.cond_stage_model.named_parameters() if n.endswith("q_proj.weight"))
    clip = clip.clone()
    assert clip.add_patches({name: ("diff", (torch.full(weight.shape, 0.05),))})
    assert not torch.equal(encode_text(clip, TEXTS[0]), plain)
    require_same_bits(clip)


def test_an_error_in_the_middle_gives_everything_back(own_nano):
    clip, late = own_nano(), Late()
    expected = encode_text(clip, TEXTS[0])
    late.fail_at = 4
    with pytest.raises(torch.OutOfMemoryError), streamed_text.streamed(clip, late) as (own, _):
        encode_text(own, TEXTS[0])
    assert not leftovers(clip) and torch.equal(encode_text(clip, TEXTS[0]), expected)


@pytest.mark.long
@pytest.mark.parametrize("offload, streams", [("auto", False), ("off", False), ("all", True)])
def test_the_option_acts_and_changes_no_bit(offload, streams, tmp_path, robot, own_nano):
    """There is no card here for an encoder not to fit."""
    clip, late, copies = own_nano(), Late(), []
    store = Store(tmp_path / "store")
    with encode.TextEncoder(clip, offload, late) as encoder:
        embeds, made = cache_embeds(robot.dataset, encoder, store, report=lambda *_: copies.append(late.copies))
    assert made.encoded and (copies[-1] > 0) == streams
    assert not leftovers(clip)
    for text in robot.dataset.texts():
        assert torch.equal(embeds.embeds[text], encode_text(clip, text))
    with encode.TextEncoder(clip, offload, late) as encoder:
        cache_embeds(robot.dataset, encoder, store)
        assert encoder.ready is None  # all of it was found, so nothing was loaded


def test_auto_streams_what_does_not_fit_the_card(own_nano, monkeypatch):
    clip = own_nano()
    clip.patcher.load_device = torch.device("cuda", 0)
    spare = comfy.model_management.minimum_inference_memory()
    for room, expected in ((0, True), (clip.patcher.model_size() + 1, False)):
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, room=room: spare + room)
        assert streamed_text.needed(clip, "auto") is expected
        assert streamed_text.needed(clip, "all") and not streamed_text.needed(clip, "off")


def test_a_clip_without_layers_and_a_wrong_word_are_refused(nano, monkeypatch):
    with pytest.raises(UserError, match="offload is 'some'; choose one of auto, off, all"):
        EmbedSettings(offload="some")
    monkeypatch.setattr(streamed_text, "can_stream", lambda layer: False)
    said = "no layers that can be streamed; set offload of Cache Embeds to 'off'"
    with pytest.raises(UserError, match=said), streamed_text.streamed(nano.clip):
        pass
