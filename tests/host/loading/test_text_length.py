"""A flavour that pads captions to 64 tokens: its CLIP does, in every stock node, and its MODEL reads these alone."""

from dataclasses import replace

import comfy.model_base
import pytest
import torch
from support import problem

from bench.nano import flow
from bench.nano.host import token_ids
from flux2_train import flavours, nano
from flux2_train.flavours import FLAVOURS
from flux2_train.host.borrowed.velocity import Condition, model_inputs
from flux2_train.host.loading import files, load, text_length
from flux2_train.planning.table import Question, work_of
from nodes import CLIPSetLastLayer, CLIPTextEncode

CAPTION = "a red cat left of a blue house"


@pytest.fixture(scope="module")
def row():
    return replace(FLAVOURS["nano"], text_length=64)


@pytest.fixture(scope="module")
def clip(row, comfy_folders):
    with torch.inference_mode():
        return load.load_text_encoder(files.locate(row.text_encoders), row)


def read(model, embeds):
    """What a MODEL's transformer gets of embeds."""
    x = problem(1, context=nano.CONTEXT, dtype=torch.float32)[0]
    return model_inputs(model, x, Condition(embeds))["c_crossattn"]


def test_stock_nodes_pad_to_the_flavours_length(clip):
    with torch.inference_mode():
        embeds = CLIPTextEncode().encode(clip, CAPTION)[0][0][0]
        expected = flow.text([CAPTION]).embeds
    assert embeds.shape == (1, 64, nano.CONTEXT) and torch.equal(embeds, expected)
    other = CLIPSetLastLayer().set_last_layer(clip, -2)[0]  # a clone
    assert len(other.tokenize(CAPTION)["qwen3_4b"][0]) == 64


def test_longer_captions_keep_all_their_tokens(clip):
    long = " ".join(["cat"] * 80)
    assert len(clip.tokenize(long)["qwen3_4b"][0]) == len(token_ids(long)) > 80


def test_without_a_length_of_its_own_a_flavour_pads_to_512(nano):
    assert {row.text_length for name, row in FLAVOURS.items() if name != "nano"} == {flavours.LONGEST} == {512}
    assert len(nano.clip.tokenize(CAPTION)["qwen3_4b"][0]) == FLAVOURS["nano"].text_length


def test_its_model_reads_embeds_as_long_as_they_are(row, monkeypatch, comfy_folders):
    path, embeds = files.locate(row.transformer_files("auto")), torch.randn(1, 64, nano.CONTEXT)
    with torch.inference_mode():
        monkeypatch.setattr(text_length.identify, "by_sizes", lambda sizes: replace(row, text_length=512))
        core = load.load_transformer(path)
        monkeypatch.setattr(text_length.identify, "by_sizes", lambda sizes: row)
        ours = load.load_transformer(path)
        again = ours.cached_patcher_init[0](*ours.cached_patcher_init[1])
    assert read(core, embeds).shape == (1, 512, nano.CONTEXT) and not read(core, embeds)[:, :448].any()
    for model in (ours, again, ours.clone()):
        assert torch.equal(read(model, embeds), embeds) and isinstance(model.model, comfy.model_base.Flux2)
    assert [text_length.read_by(model) for model in (core, ours, ours.clone())] == [512, 64, 64]


def test_a_plan_counts_the_text_that_is_read(row):
    question = Question()
    assert [work_of(each, "bf16", 128, question).text for each in (row, FLAVOURS["klein-4b"])] == [64, 512]
