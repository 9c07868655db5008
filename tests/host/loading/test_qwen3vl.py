"""A Qwen3-VL as klein's text encoder, in true size without its bytes: with and without the part that sees pictures.

Some versions of ComfyUI use the language model alone, others build the part that sees as well. What those do is built
here out of ComfyUI's own classes.
"""

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.llama
import comfy.utils
import pytest
import torch
from comfy import sd1_clip
from published import write_hollow
from published_encoders import QWEN_4B, sight
from published_encoders import headers_of as text_headers

from flux2_train.flavours import FLAVOURS
from flux2_train.host.encoding.encode import TextEncoder
from flux2_train.host.loading import load

qwen3vl = pytest.importorskip("comfy.text_encoders.qwen3vl", reason="this ComfyUI has no Qwen3-VL")


@pytest.fixture
def path(tmp_path):
    renamed = text_headers(QWEN_4B, renamed=lambda name: name.replace("model.", "model.language_model.", 1))[0]
    return write_hollow(tmp_path / "qwen3vl.safetensors", renamed | sight(QWEN_4B), {})


@pytest.fixture
def core_that_sees(monkeypatch):
    """Makes ComfyUI's loader do what newer ones do with a Qwen3-VL for FLUX.2."""

    class Seeing(comfy.text_encoders.llama.Qwen3_4B):
        def __init__(self, config, dtype, device, operations):
            super().__init__(config, dtype, device, operations)
            config = {**qwen3vl.QWEN3VL_VISION_COMMON, **qwen3vl.QWEN3VL_VISION["qwen3vl_4b"], "out_hidden_size": 2560}
            self.visual = qwen3vl.Qwen3VLVisionModel(config, device=device, dtype=dtype, ops=operations)

    class Inner(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device, layer=[9, 18, 27], textmodel_json_config={}, dtype=dtype, special_tokens={"pad": 151643},
                layer_norm_hidden_state=False, model_class=Seeing, enable_attention_masks=True,
                return_attention_masks=True, model_options=model_options or {},
            )  # fmt: skip

    class Outer(comfy.text_encoders.flux.Flux2TEModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, torch.bfloat16, model_options or {}, name="qwen3_4b", clip_model=Inner)

    def loader(state_dicts, embedding_directory=None, clip_type=None, model_options=None):
        prefixes = {"model.language_model.": "model.", "model.visual.": "visual."}
        tensors = comfy.utils.state_dict_prefix_replace(state_dicts[0], prefixes)
        target = type("Target", (), {"params": {}, "clip": Outer, "tokenizer": comfy.text_encoders.flux.KleinTokenizer})
        return comfy.sd.CLIP(target, state_dict=[tensors], model_options=model_options or {})

    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", loader)


def loaded(path):
    with torch.inference_mode():
        return load.load_text_encoder(path, FLAVOURS["klein-4b"])


def parts_of(clip):
    """The weights on no device, and the names of those of the part that sees."""
    inner = clip.cond_stage_model.qwen3_4b.transformer
    named = dict(inner.named_parameters())
    return [name for name, w in named.items() if w.is_meta], [name for name in named if name.startswith("visual.")]


@pytest.mark.slow
def test_the_language_model_alone_is_used_where_core_uses_that(path):
    if hasattr(comfy.text_encoders.flux, "klein_vl_te"):
        pytest.skip("this ComfyUI builds the part that sees")
    assert parts_of(loaded(path)) == ([], [])


@pytest.mark.long
def test_the_part_that_sees_is_kept_where_core_builds_it(path, core_that_sees):
    missing, seeing = parts_of(loaded(path))
    assert missing == []
    assert {f"model.{name}" for name in seeing} == set(sight(QWEN_4B))


@pytest.mark.slow
def test_caches_of_the_two_are_told_apart(path, request):
    if hasattr(comfy.text_encoders.flux, "klein_vl_te"):
        pytest.skip("this ComfyUI builds the part that sees")
    alone = TextEncoder(loaded(path)).identity
    request.getfixturevalue("core_that_sees")
    assert TextEncoder(loaded(path)).identity != alone
